"""A player: a net, the optimizer that moves it, and the loss it pays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tinygan import optimizers
from tinygan._run import checks
from tinygan.average import Average
from tinygan.nets.applied import Applied, as_input
from tinygan.nets.traits import evaluating, has_dropout
from tinygan.optimizers import OptimizerFactory, dcgan_adam
from tinygan.report import Ledger
from tinygan.schedules import Schedule


class Player:
    """A net and its optimizer, as an algorithm sees them.

    Calling a player applies its net. ``pay`` adds to the gradients of its own weights alone.
    ``log`` adds a statistic to the step's report.

    Args:
        name: the player's name in the algorithm (``players.name``), in reports and in messages.
        module: the net.
        optimizer: a function that makes the optimizer from the net's named parameters.
        ema_half_life: the half-life, in images, of a moving average of weights and running
            statistics, from which samples are then made: a number, ``inf`` or a schedule, cut to
            .15 of the images seen; None for no average.

    Attributes:
        average: the moving average, whose ``net`` samples are made from, or None.
        skipped: 1 if the last update was skipped, else 0: a scalar on the device.

    Raises:
        ValueError: for a name that is not a Python identifier, a net without trainable weights, a
            half-life under 1, or an optimizer that needs a closure or moves other weights.
        TypeError: for no net, or an optimizer instead of a function that makes one.

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
                f"a player's name must be a Python name such as 'generator', got {name!r}."
            )
        if not isinstance(module, nn.Module):
            raise TypeError(f"the {name} must be a torch.nn.Module, got {module!r}; give the net.")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError(
                f"the {name} must have trainable weights, got a {type(module).__name__} without "
                "any; use a net whose parameters require gradients."
            )
        self.name = name
        self.module = module
        self.optimizer = optimizers.make(optimizer, module)
        self.average = None if ema_half_life is None else Average(module, ema_half_life)
        self.prepare(next(module.parameters()).device)

    def prepare(
        self, device: torch.device, dtype: torch.dtype | None = None, *, compiled: bool = False
    ) -> None:
        """Move the net to a device, and choose how it is applied. The trainer calls this."""
        self.module.to(device)
        state = self.optimizer.state_dict()
        if state.keys() - {"state", "param_groups"} or state.get("state"):  # before its first step
            state = optimizers.state_of(self.optimizer, self.module)
            optimizers.load_state(self.optimizer, self.module, state)
        if self.average is not None:
            self.average.to(device)
        self.device = device
        self.weights_dtype = next(self.module.parameters()).dtype
        self.applied = Applied(self.module, dtype, compiled=compiled)
        self.ledger = Ledger(self.name)
        self.skipped = torch.ones((), dtype=torch.float32, device=device)

    def lay_out(self, layout: torch.memory_format) -> None:
        """Hold images, weights and their moments in a memory format. The trainer calls this."""
        held: list[Any] = [m for own in self.optimizer.state.values() for m in own.values()]
        for net in (self.module, *([] if self.average is None else [self.average.net])):
            held += [*net.parameters(), *net.buffers()]
        for tensor in held:
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 4:  # others have no such format
                tensor.data = tensor.data.to(memory_format=layout)
        self.applied.layout = layout

    @property
    def latent_dim(self) -> int:
        """The length of the net's noise vector: its attribute ``latent_dim``."""
        found: int | None = getattr(self.module, "latent_dim", None)
        if found is None:
            raise ValueError(
                f"the {self.name} must have an attribute latent_dim, the length of its noise; set "
                "net.latent_dim = 100."
            )
        return found

    @property
    def moved(self) -> torch.Tensor:
        """Whether the last update moved the weights (else it was skipped): a bool on the device."""
        return self.skipped == 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        # Not by a walk through the net, which takes as long as several small kernels.
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients in ``.grad``."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Apply the net to inputs of any floating type; results have the type of the weights."""
        try:
            return self.applied(*inputs)
        except Exception as error:
            shapes = " and ".join(str(tuple(getattr(each, "shape", ()))) for each in inputs)
            error.add_note(f"raised by the {self.name}, which must take inputs of shape {shapes}")
            raise

    @torch.no_grad()
    def sample(self, *inputs: torch.Tensor) -> Any:
        """Apply the net, or its moving average, in evaluation mode; nothing of the run changes."""
        net = self.module if self.average is None else self.average.net
        with evaluating(net):
            own = self.weights_dtype, self.applied.layout
            return net(*(as_input(each, *own).to(self.device) for each in inputs))

    def twice_differentiable(self, *more: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the net as a function of its first input, for gradients of gradients.

        These need the precision of the weights' own type, and torch.compile has none. ``more`` are
        the other inputs, such as labels. If the net is compiled, the function's ``once`` is the
        compiled one in the same type, for costs that take no gradients of gradients.
        """
        if self.applied.layout == torch.channels_last and not (more or self.applied.compiled):
            return self.module  # what algorithms have is channels last too
        return _Bound(self.applied, more)

    def pay(self, cost: torch.Tensor, name: str | None = None, *, weight: float = 1.0) -> None:
        """Add the gradient of ``weight`` times the mean cost to this player's weights, no others.

        The first payment after an update replaces the gradients, later ones add to them.

        Args:
            cost: one cost per example (N, ...), or their mean ().
            name: the name under which the mean cost is reported, without the weight. None adds it
                to the player's own ``loss_<name>``.
            weight: a factor.

        Raises:
            TypeError, ValueError: for a cost that is not a tensor, or has no gradient.
        """
        if not isinstance(cost, torch.Tensor):
            raise TypeError(
                f"the {self.name} must pay a tensor, got {type(cost).__name__}; give one cost per "
                "example (N, ...) or their mean."
            )
        inputs = [p for p in self.parameters if p.requires_grad]
        if not cost.requires_grad or not inputs:
            raise ValueError(
                f"the {self.name} must pay a cost that its weights can learn from, got one without "
                "a gradient; compute it outside torch.no_grad(), detach nothing on the way, and "
                "leave some weights trainable."
            )
        if not self.ledger.paid:
            self.optimizer.zero_grad()
            self.ledger.paid = True
        shared = self.ledger.mean(cost)
        self.ledger.add(name, shared.detach())
        weighted = shared if weight == 1 else weight * shared
        if self.ledger.loss_scale is not None:
            weighted = self.ledger.loss_scale * weighted
        try:
            weighted.backward(inputs=inputs)
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise ValueError(
                    f"the {self.name} must pay once for each pass through a net, got a second cost "
                    "of the same pass; add up one player's costs and pay the sum, and apply the "
                    "net again for another player's cost."
                ) from error
            raise

    def log(self, **values: torch.Tensor) -> None:
        """Report the means of some values (N, ...) by name; no gradient flows through them."""
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"the {self.name} must log tensors, got {type(value).__name__} for {name}; "
                    "give one value per example (N, ...) or their mean."
                )
            known = value.detach()
            if not known.is_floating_point():
                known = known.to(self.weights_dtype)
            self.ledger.note(name, self.ledger.mean(known))


class _Bound:
    """A net as a function of its first input, in its layout, with the others held."""

    def __init__(self, applied: Applied, more: Sequence[torch.Tensor]) -> None:
        self.applied, self.more = applied, more
        self.join: int = getattr(applied.net, "join", 1)

    def __call__(self, examples: torch.Tensor) -> torch.Tensor:
        examples = as_input(examples, examples.dtype, self.applied.layout)
        logits: torch.Tensor = self.applied.net(examples, *self.more)
        return logits

    def once(self, examples: torch.Tensor) -> torch.Tensor:
        """Do the same by the compiled net, whose gradients have no gradients."""
        logits: torch.Tensor = self.applied.bare(examples, *self.more)
        return logits


class Players:
    """The players of a game: by name as ``players.generator``, in order, and by number.

    Args:
        players: one or more.

    Raises:
        TypeError: for anything but a player.
        ValueError: for an empty list, or names or weights that two players share.

    Examples:
        >>> players = Players([Player("critic", nn.Linear(2, 1))])
        >>> players.critic is players[0]
        True
    """

    def __init__(self, players: Sequence[Player]) -> None:
        self._players = checks.several("players", players, Player, "give tinygan.Player objects.")
        if not self._players:
            raise ValueError("players must not be empty; give tinygan.Player objects.")
        names = [player.name for player in self._players]
        taken = [name for name in names if hasattr(Players, name)]
        if taken:
            raise ValueError(f"a player must not be called {taken[0]}; choose another name.")
        if len(set(names)) < len(names):
            raise ValueError(f"players must have different names, got {', '.join(names)}.")
        owners: dict[int, str] = {}
        for player in self._players:
            for name, parameter in player.module.named_parameters():
                owner = owners.setdefault(id(parameter), player.name)
                if owner != player.name and parameter.requires_grad:
                    raise ValueError(
                        f"players must not share trainable weights, got {name}, which the {owner} "
                        f"and the {player.name} share; freeze it (requires_grad_(False)), or make "
                        "one player of both."
                    )
            setattr(self, player.name, player)
            if has_dropout(player.module):
                warnings.warn(
                    f"the {player.name} has dropout, which draws from PyTorch's global generator: "
                    "a resumed run will differ. Leave dropout out if that matters.",
                    stacklevel=3,
                )

    def check_optimizers(self) -> None:
        """Raise ValueError for a trainable weight that no optimizer moves."""
        for player in self:
            held = {id(parameter) for parameter in player.parameters}
            for name, parameter in player.module.named_parameters():
                if parameter.requires_grad and id(parameter) not in held:
                    raise ValueError(
                        f"the {player.name}'s optimizer must hold every trainable weight, but it "
                        f"lacks {name}; replace or unfreeze layers, and load with assign=True, "
                        "before the trainer is made, or call player.optimizer.add_param_group."
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
        """Name the players there are, for a name that no player has."""
        players: Sequence[Player] = self.__dict__.get("_players", ())
        known = ", ".join(player.name for player in players)
        raise AttributeError(f"no player is called {name}; the players are {known}")
