"""A player: a net, the optimizer that moves it, and what it pays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from tinygan import optimizers
from tinygan._execution.compiled import forwards
from tinygan._execution.finite import Buffers
from tinygan._execution.precision import LossScale, autocast
from tinygan._run import checks
from tinygan.average import Average
from tinygan.nets.traits import evaluating
from tinygan.optimizers import OptimizerFactory, dcgan_adam
from tinygan.schedules import Schedule

RESERVED = ("step", "epoch", "images")
"""Names of counters, which stand beside the statistics in logs."""


class Player:
    """A net and the optimizer that moves it, as an algorithm sees them.

    Calling a player applies its net. ``pay`` adds to the gradients of its weights, and of no
    others. ``log`` gives a statistic to the step's report.

    Args:
        name: what the algorithm, reports and messages call it; ``players.name`` in the algorithm.
        module: the net.
        optimizer: makes the optimizer from the net's named parameters.
        ema_half_life: images after which weights count half in a moving average of the net's,
            from which samples are then made: a number, or a schedule; None for no average.

    Attributes:
        average: the moving average, whose ``net`` is sampled from; None if there is none.
        recompute: whether calls keep nothing in memory, and a backward pass computes them again.
            The step sets this, where a batch is accumulated and a graph waits for a later turn.

    Raises:
        ValueError: for a name that is not a Python identifier, a net without weights that learn, or
            a half-life under 1.
        TypeError: for an optimizer instead of what makes one.

    Examples:
        >>> critic = Player("critic", nn.Linear(2, 1))
        >>> critic(torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: OptimizerFactory = dcgan_adam,
        *,
        ema_half_life: float | Schedule | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"a player's name must be a Python name, such as 'generator', got {name!r}."
            )
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError(
                f"the {name} must have weights that can learn, got a {type(module).__name__} "
                "without any; give a net whose parameters require gradients."
            )
        self.name = name
        self.module = module
        self.optimizer: Optimizer = optimizers.make(optimizer, module)
        self.average: Average | None = None
        if ema_half_life is not None:
            self.average = Average(module, ema_half_life)
        self.prepare(next(module.parameters()).device)

    def prepare(
        self,
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        compiled: bool = False,
        loss_scale: LossScale | None = None,
    ) -> None:
        """Move the net to a device, and choose how it is applied. The trainer calls this."""
        # Channels last is the layout in which convolutions of images run fastest.
        self.module.to(device).to(memory_format=torch.channels_last)
        if self.optimizer.state:  # some have a state before their first step
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        if self.average is not None:
            self.average.net.to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.weights_dtype = next(self.module.parameters()).dtype
        self._dtype = self.weights_dtype if dtype is None else dtype
        self._forward, self._frozen = forwards(self.module, compiled=compiled)
        self._loss_scale = loss_scale
        self._buffers = Buffers([self.module])
        self.recompute = False
        self.skipped = torch.ones((), device=device)
        self.begin()

    @property
    def latent_dim(self) -> int:
        """The length of the noise that the net is given: its attribute ``latent_dim``.

        Raises:
            ValueError: for a net without that attribute.
        """
        found: int | None = getattr(self.module, "latent_dim", None)
        if found is None:
            raise ValueError(
                f"the {self.name} must have an attribute latent_dim, the length of its noise, got "
                "none; set its net's latent_dim = 100."
            )
        return found

    @property
    def moved(self) -> torch.Tensor:
        """Whether the last update moved the weights, or was skipped: a bool on the device."""
        return self.skipped == 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        # Not by a walk through the net, which takes as long as several small kernels.
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_weights(self, values: Sequence[torch.Tensor]) -> None:
        """Give the parameters these values."""
        # By .data autograd does not see it: a graph that has yet to go backward has saved them.
        torch._foreach_copy_([parameter.data for parameter in self.parameters], list(values))

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients that lie in ``.grad``."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Apply the net. Inputs may be of any floating type; results have the weights' type."""
        if self.recompute and torch.is_grad_enabled():
            return self._recomputed(inputs)
        return self._applied(self._forward, inputs)

    def _recomputed(self, inputs: Sequence[torch.Tensor]) -> Any:
        """Apply the net, and keep nothing of it: a backward pass will apply it again."""
        versions = [parameter._version for parameter in self.parameters]
        before = self._buffers.copies()
        recording = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if recording and has_dropout(self.module):
            raise RuntimeError(f"dropout of the {self.name} cannot be computed again in a graph")

        @contextmanager
        def again() -> Iterator[None]:
            if versions != [parameter._version for parameter in self.parameters]:
                raise RuntimeError(
                    f"the {self.name} has moved since this was computed; apply it again after the "
                    "yield."
                )
            now = self._buffers.copies()
            self._buffers.put(before)
            try:
                yield
            finally:
                self._buffers.put(now)

        return checkpoint(
            lambda *given: self._applied(self._forward, given),
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), again()),
            # A recording cannot ask for the state of random generators.
            preserve_rng_state=not recording,
        )

    def frozen(self, *inputs: torch.Tensor) -> Any:
        """Apply the net for a cost that another player pays.

        It gives what a plain call gives, and saves time: compiled nets compute every gradient that
        a plain call may want, this player's too.
        """
        return self._applied(self._frozen, inputs)

    @torch.no_grad()
    def sample(self, *inputs: torch.Tensor) -> Any:
        """Apply the net as samples are made: its moving average, if there is one, evaluating.

        In the weights' own type; nothing of the run changes.
        """
        net = self.module if self.average is None else self.average.net
        with evaluating(net):
            return net(*(as_seen(each, self.weights_dtype).to(self.device) for each in inputs))

    def twice_differentiable(self, *more: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the net as a function of its first input: for gradients of gradients.

        It is applied in its weights' own type, for these gradients are delicate in few bits, and
        uncompiled, for torch.compile has none.

        Args:
            more: the inputs after the first, such as labels.
        """
        return Judge(self.module, more) if more else self.module

    def _applied(self, forward: Any, inputs: Sequence[torch.Tensor]) -> Any:
        given = [as_seen(tensor, self.weights_dtype) for tensor in inputs]
        with autocast(self.device, self._dtype, self.weights_dtype):
            made = forward(*given)
        return self._widened(made)

    def _widened(self, made: Any) -> Any:
        if isinstance(made, torch.Tensor):
            widen = made.dtype is not self.weights_dtype and made.is_floating_point()
            return made.to(self.weights_dtype) if widen else made
        if isinstance(made, (tuple, list)):
            return tuple(self._widened(each) for each in made)
        return made

    def pay(self, cost: torch.Tensor, name: str | None = None, *, weight: float = 1.0) -> None:
        """Add to the gradients of this player's weights those of ``weight`` times the mean cost.

        The first payment after a move replaces the gradients, later ones add to them. Weights of
        other players get none.

        Args:
            cost: of each example, (N, ...), or a mean already, ().
            name: reports the mean cost, without the weight, under this name. None adds it to the
                player's own ``loss_<name>``.
            weight: what the cost counts.

        Raises:
            TypeError: for a cost that is not a tensor.
            ValueError: for a cost without a gradient.
        """
        if self.muted:
            self.owes = True
            return
        if not isinstance(cost, torch.Tensor):
            raise TypeError(
                f"the {self.name} must pay a tensor, got {type(cost).__name__}; give the cost of "
                "each example, (N, ...), or their mean."
            )
        if not cost.requires_grad:
            raise ValueError(
                f"the {self.name} must pay a cost that its weights can learn from, got one without "
                "a gradient; detach nothing on the way, and compute it outside torch.no_grad()."
            )
        if not self.owes:
            self.optimizer.zero_grad()
            self.owes = True
        # A copy of a mean: ranks average what is logged in place.
        mean = cost.clone() if cost.dim() == 0 else cost.mean()
        shared = mean if self.share == 1 else mean * self.share
        own = f"loss_{self.name}"
        if name is None and own in self._noted:
            self._noted[own] = self._noted[own] + shared.detach()
        else:
            self._note(name or own, shared.detach())
        weighted = shared if weight == 1 else weight * shared
        if self._loss_scale is not None:
            weighted = self._loss_scale.scaled(weighted)
        try:
            weighted.backward(inputs=[p for p in self.parameters if p.requires_grad])
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise ValueError(
                    f"the {self.name} must pay for a pass of its own, got a cost of one that was "
                    "paid for before; add up the costs of one player and pay their sum, and apply "
                    "the net again for another player's cost."
                ) from error
            raise

    def log(self, **values: torch.Tensor) -> None:
        """Report the means of some values by name; no gradient flows through them.

        Raises:
            ValueError: for a name that was used already before the next ``yield``.
        """
        if self.muted:
            return
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"the {self.name} must log tensors, got {type(value).__name__} for {name}; "
                    "give a value of each example, (N, ...), or their mean."
                )
            known = value.detach()
            known = known if known.is_floating_point() else known.to(self.weights_dtype)
            mean = known.clone() if known.dim() == 0 else known.mean()
            self._note(name, mean if self.share == 1 else mean * self.share)

    def _note(self, name: str, value: torch.Tensor) -> None:
        if name in RESERVED:
            raise ValueError(
                f"a statistic must not be called {', '.join(RESERVED)}, which logs count by, got "
                f"{name}; choose another name."
            )
        if name in self._noted:
            raise ValueError(
                f"a statistic's name must be used once, got {name} again from the {self.name}; "
                "give each cost and each value a name of its own."
            )
        self._noted[name] = value

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Within the block the net is applied uncompiled and in evaluation mode."""
        before = self._forward, self._frozen
        self._forward = self._frozen = self.module
        try:
            with evaluating(self.module):
                yield
        finally:
            self._forward, self._frozen = before

    def begin(self, share: float = 1.0) -> None:
        """Begin a step, in which the mean of a part of a batch counts ``share``.

        The step calls this. A player that is ``muted`` pays and logs without effect: the algorithm
        has been here before.
        """
        self.share = share
        self.muted = False
        self.owes = False
        self._noted: dict[str, torch.Tensor] = {}

    def take_notes(self) -> dict[str, torch.Tensor]:
        """Return what was logged since the last time, by name."""
        noted, self._noted = self._noted, {}
        return noted

    def unscale(self) -> None:
        """Divide the gradients by float16's loss scale, if there is one."""
        if self._loss_scale is not None:
            self._loss_scale.unscale(self.gradients())

    def update(self, skip: torch.Tensor) -> None:
        """Move the weights along the gradients in ``.grad``, unless ``skip`` is 1: a float scalar.

        Fused optimizers decide on the device. Others cannot, so for them the host waits for it.
        """
        if optimizers.decides_on_device(self.optimizer):
            # The protocol between PyTorch's GradScaler and its optimizers.
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif skip == 0:  # sync
            self.optimizer.step()
        self.skipped = skip


class Judge:
    """A net as a function of its first input.

    Args:
        net: the net.
        more: its other inputs, such as labels.

    Attributes:
        join: how many examples the net judges together.
    """

    def __init__(self, net: nn.Module, more: Sequence[torch.Tensor] = ()) -> None:
        self.net, self.more = net, tuple(more)
        self.join: int = getattr(net, "join", 1)

    def __call__(self, examples: torch.Tensor) -> torch.Tensor:
        """Return the logits of examples."""
        logits: torch.Tensor = self.net(examples, *self.more)
        return logits


class Players:
    """The players of a game, by name: ``players.generator``, in order, and by number.

    Args:
        players: at least one.

    Raises:
        TypeError: for what is no player.
        ValueError: for none, or names or weights that two of them share.

    Examples:
        >>> players = Players([Player("critic", nn.Linear(2, 1))])
        >>> players.critic is players[0]
        True
    """

    def __init__(self, players: Sequence[Player]) -> None:
        self._players = checks.several("players", players, Player, "give tinygan.Player objects.")
        if not self._players:
            raise ValueError("players must be one at least, got none; give tinygan.Player objects.")
        names = [player.name for player in self._players]
        taken = [name for name in names if hasattr(Players, name)]
        if taken:
            raise ValueError(f"a player must not be called {taken[0]}; choose another name.")
        if len(set(names)) < len(names):
            raise ValueError(
                f"players must have names of their own, got {', '.join(names)}; rename one."
            )
        owners: dict[int, str] = {}
        for player in self._players:
            for name, parameter in player.module.named_parameters():
                owner = owners.setdefault(id(parameter), player.name)
                if owner != player.name and parameter.requires_grad:
                    raise ValueError(
                        "players must have weights of their own, got one that the "
                        f"{owner} and the {player.name} share, {name}; freeze it "
                        "(requires_grad_(False)), or make one player of both."
                    )
            setattr(self, player.name, player)
            if has_dropout(player.module):
                warnings.warn(
                    f"the {player.name} has dropout, which draws from PyTorch's global generator: "
                    "a resumed run will not be the same run; leave it out if that matters.",
                    stacklevel=3,
                )

    def check_optimizers(self) -> None:
        """Raise ValueError for weights that learn and that no optimizer moves."""
        for player in self:
            held = {id(parameter) for parameter in player.parameters}
            for name, parameter in player.module.named_parameters():
                if parameter.requires_grad and id(parameter) not in held:
                    raise ValueError(
                        f"the {player.name}'s optimizer must hold all weights that learn, got "
                        f"{name}, which it does not; replace or unfreeze layers, and load with "
                        "assign=True, before the trainer is made, or call "
                        "player.optimizer.add_param_group."
                    )

    def __iter__(self) -> Iterator[Player]:
        """Give the players in order."""
        return iter(self._players)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._players)

    def __getitem__(self, index: int) -> Player:
        """Return a player by its number."""
        return self._players[index]

    def __getattr__(self, name: str) -> Player:
        """Say which players there are, for a name that none of them has."""
        players: Sequence[Player] = self.__dict__.get("_players", ())
        known = ", ".join(player.name for player in players)
        raise AttributeError(f"no player is called {name}; there are {known}")


def has_dropout(net: nn.Module) -> bool:
    """Return whether a net drops anything at random.

    Examples:
        >>> has_dropout(nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5)))
        True
    """
    return any(
        (isinstance(part, _DropoutNd) and part.p > 0)
        or (isinstance(part, nn.MultiheadAttention) and part.dropout > 0)
        for part in net.modules()
    )


def as_seen(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor as nets with weights of a type are given it; images are channels last.

    Examples:
        >>> as_seen(torch.zeros(2, 3, dtype=torch.float64), torch.float32).dtype
        torch.float32
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"a net must be given tensors, got a {type(tensor).__name__}; unpack a batch, as in "
            "real, *more = batch."
        )
    if not tensor.is_floating_point():
        return tensor
    if tensor.dim() == 4:
        return tensor.to(dtype, memory_format=torch.channels_last)
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
