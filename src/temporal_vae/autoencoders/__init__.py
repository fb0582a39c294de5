"""The autoencoders: public faces of the networks in `model/`.

`base.py` has what all of them do; `temporal.py` has that of clips, `image.py` those of pictures.
"""
