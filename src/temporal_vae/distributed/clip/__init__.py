"""One clip, many ranks: who decodes what, what they send each other, and how they notice that one of them is gone."""
