"""One step: batches forth and back through the autoencoder, and through the adversary if there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.training.checkpoint import State
from temporal_vae.training.config.fields import TrainConfig
from temporal_vae.training.data.dataloader import Drawn, to_device
from temporal_vae.training.linear import keep_constants
from temporal_vae.training.losses import adaptive_weight, hinge_discriminator, hinge_generator
from temporal_vae.training.objective import Autoencoding, Objective, learning_rate, new_discriminator


class Learner:
    """Models and optimizers of a run, on the device of this process.

    Args:
        config: of the run.
        vae: in float32; moved and changed in place.
        names: of the parameters that learn.
        accelerator: how many processes there are, and what each works on.

    Attributes:
        state: what a step changes.
    """

    def __init__(
        self,
        config: TrainConfig,
        vae: AutoencoderKLTemporalDecoder,
        names: Sequence[str],
        accelerator: Accelerator,
    ) -> None:
        self._config, self._accelerator = config, accelerator
        device = accelerator.device
        vae.train().to(device)
        if config.model.linear_start is not None or config.model.keep_constants:
            keep_constants(vae)
        if config.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        self._objective = Objective(config.losses)
        self._module = accelerator.prepare_model(Autoencoding(vae))
        self._learning = [vae.get_parameter(name) for name in names]
        self._last_layer = _last_layer(vae)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self._critic: nn.Module | None = None
        self.state = State(
            vae=vae,
            ema={name: vae.get_parameter(name).detach().clone() for name in names} if config.ema else {},
            optimizer=_optimizer(self._learning, config.optimizer.learning_rate, config),
        )
        if config.adversary is not None:
            discriminator = new_discriminator(config.adversary, vae.config.out_channels).to(device)
            self._critic = accelerator.prepare_model(discriminator)
            self.state.discriminator = discriminator
            self.state.discriminator_optimizer = _optimizer(
                list(discriminator.parameters()), config.adversary.learning_rate, config
            )

    def remember(self) -> None:
        """Bring what is not in the state there, before it is saved."""
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            self.state.counters.scale, self.state.counters.scale_age = (
                scaler["scale"],
                scaler["_growth_tracker"],
            )

    def restored(self) -> None:
        """Take over what `remember` brought to the state, after it was loaded."""
        if self._scaler.is_enabled():
            counters = self.state.counters
            own = self._scaler.state_dict()
            self._scaler.load_state_dict(
                {**own, "scale": counters.scale, "_growth_tracker": counters.scale_age}
            )

    def step(self, drawn: Sequence[Drawn]) -> dict[str, float] | None:
        """Learn from batches, whose gradients are averaged; returns what to plot, or None if nothing was learnt.

        Nothing is learnt, in no process, if any loss or gradient is not finite.
        """
        optimizers = self._optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        sums: dict[str, float] = {}
        for part, batch in enumerate(drawn):
            values = self._learn(batch, part, share=1 / len(drawn), last=part == len(drawn) - 1)
            if values is None:
                return None
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / len(drawn)
        for optimizer in optimizers:
            self._scaler.unscale_(optimizer)
        most = self._config.optimizer.gradient_norm
        norm = nn.utils.clip_grad_norm_(self._learning, most).item()
        finite = math.isfinite(norm)
        if self.state.discriminator is not None:
            critical = nn.utils.clip_grad_norm_(self.state.discriminator.parameters(), most)
            finite = finite and bool(torch.isfinite(critical))
        if not self._scaler.is_enabled() and not finite:
            return None
        rate = learning_rate(self._config.optimizer, self.state.counters.step, self._config.steps)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        for optimizer in optimizers if finite else ():
            self._scaler.step(optimizer)
        self._scaler.update()  # where gradients were not finite in float16, losses are scaled by less from now on
        return {**sums, "gradient_norm": norm, "learning_rate": rate}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        other = self.state.discriminator_optimizer
        return (
            [self.state.optimizer, other] if other is not None and self._opposed else [self.state.optimizer]
        )

    @property
    def _opposed(self) -> bool:
        """Whether the adversary takes part in the present step."""
        adversary = self._config.adversary
        return adversary is not None and self.state.counters.step >= adversary.first_step

    def _learn(self, batch: Drawn, part: int, *, share: float, last: bool) -> dict[str, float] | None:
        """Gradients of one batch; None if a loss is not finite in any process."""
        accelerator, config = self._accelerator, self._config
        frames = to_device(batch, accelerator.device)
        seed = np.random.SeedSequence(
            (config.seed, 2, self.state.counters.step, part, accelerator.process_index)
        )
        torch.manual_seed(
            int(seed.generate_state(1)[0])
        )  # all that is random in a step depends on its number alone
        noise = self._noise(frames) if config.sample_posterior else None
        with self._gradients_shared(self._module, last):
            with self._precision():
                output, mean, logvar = self._module(frames, batch.length, noise)
            terms = self._objective(output, frames, mean, logvar, batch.length)
            if self._opposed:
                terms["adversary"] = self._opposition(output, terms, batch.length)
            loss = torch.stack(list(terms.values())).sum()
            if any_process(accelerator, not bool(torch.isfinite(loss))):
                return None
            self._scaler.scale(loss * share).backward()
        if self._opposed:
            criticism = self._criticise(output.detach(), frames, batch.length, share=share, last=last)
            if criticism is None:
                return None
            terms["discriminator"] = criticism
        names = [*terms, "loss"]
        numbers = torch.stack([*terms.values(), loss]).detach().tolist()
        return dict(zip(names, numbers, strict=True))

    def _opposition(self, output: Tensor, terms: dict[str, Tensor], length: int) -> Tensor:
        """What the decoder loses to the discriminator, with its weight."""
        adversary, discriminator = self._config.adversary, self.state.discriminator
        assert adversary is not None
        assert discriminator is not None
        discriminator.requires_grad_(False)
        with self._precision():
            logits = discriminator(output, length)
        discriminator.requires_grad_(True)
        loss = hinge_generator(logits)
        if not adversary.adaptive:
            return adversary.weight * loss
        reconstruction = torch.stack([value for name, value in terms.items() if name != "kl"]).sum()
        return adversary.weight * adaptive_weight(reconstruction, loss, self._last_layer) * loss

    def _criticise(
        self, output: Tensor, frames: Tensor, length: int, *, share: float, last: bool
    ) -> Tensor | None:
        """Gradients of the discriminator; None if its loss is not finite in any process."""
        assert self._critic is not None
        with self._gradients_shared(self._critic, last):
            with self._precision():
                real, fake = self._critic(torch.cat([frames, output]), length).chunk(2)
            loss = hinge_discriminator(real, fake)
            if any_process(self._accelerator, not bool(torch.isfinite(loss))):
                return None
            self._scaler.scale(loss * share).backward()
        return loss

    def _noise(self, frames: Tensor) -> Tensor:
        """Standard normal noise of the shape of the latents, drawn on the CPU whatever the device."""
        vae = self.state.vae
        size = [side // vae.spatial_factor for side in frames.shape[-2:]]
        noise = torch.randn(len(frames), vae.config.latent_channels, *size)
        return noise.to(frames.device)

    def _precision(self) -> AbstractContextManager[object]:
        dtype = getattr(torch, self._config.precision)
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype)

    def _gradients_shared(self, module: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Let processes share gradients only with the last batch of a step."""
        return nullcontext() if last else self._accelerator.no_sync(module)


def _optimizer(parameters: list[nn.Parameter], rate: float, config: TrainConfig) -> torch.optim.Optimizer:
    how = config.optimizer
    return torch.optim.AdamW(parameters, lr=rate, betas=how.betas, weight_decay=how.weight_decay)


def _last_layer(vae: AutoencoderKLTemporalDecoder) -> nn.Parameter:
    """The last weight of the decoder that learns: where gradients of two losses are compared."""
    weights = [p for name, p in vae.decoder.named_parameters() if p.requires_grad and name.endswith("weight")]
    learning = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    return (weights or learning)[-1]


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if accelerator.num_processes == 1:
        return flag
    flags = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(flags, reduction="sum").item() > 0)
