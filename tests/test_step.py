"""The four pieces of a step: who moves whom, and with which gradients."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tinygan

from helpers import fingerprint, tiny_images, tiny_trainer


class Moves(tinygan.Hook):
    """Notes, at each event of a step, which tensors have changed since the event before."""

    def __init__(self):
        self.seen = []

    def on_step_start(self, trainer):
        """Start the comparison."""
        self.before = fingerprint(trainer)

    def _compare(self, trainer, event):
        after = fingerprint(trainer)
        changed = {
            name.partition(".")[0] + (".buffers" if "running" in name else ".weights")
            for name in after
            if "moments" not in name
            and "num_batches" not in name
            and not torch.equal(after[name], self.before[name])
        }
        self.seen.append((event, changed))
        self.before = after

    def on_gradients(self, trainer, player):
        """Compare before the player moves."""
        self._compare(trainer, f"{player.name} backward")

    def on_update(self, trainer, player):
        """Compare after the player has moved."""
        self._compare(trainer, f"{player.name} update")


def test_each_piece_moves_only_its_own():
    """Backward pieces move batch norm statistics alone; an update moves its player's weights."""
    images = tiny_images()
    moves = Moves()
    trainer = tiny_trainer(hooks=[moves])
    trainer.fit([images[:12]], epochs=1)

    assert moves.seen == [
        ("discriminator backward", {"discriminator.buffers", "generator.buffers"}),
        ("discriminator update", {"discriminator.weights"}),
        ("generator backward", {"discriminator.buffers"}),
        ("generator update", {"generator.weights"}),
    ]


def test_the_generator_phase_leaves_the_discriminators_gradients():
    """D's .grad and requires_grad are, after G's phase, those of D's own."""
    images = tiny_images()
    kept = {}

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            if player.name == "discriminator":
                for name, p in player.module.named_parameters():
                    kept[name] = p.grad.clone()

    trainer = tiny_trainer(hooks=[Keep()])
    trainer.fit([images], epochs=1)

    for name, parameter in trainer.discriminator.named_parameters():
        assert torch.equal(parameter.grad, kept[name]), name
        assert parameter.requires_grad, name


def test_gradients_are_those_of_the_written_losses():
    """What lies in .grad at on_gradients is the gradient of the losses written out plainly."""
    images = tiny_images()
    trainer = tiny_trainer()
    nets = {p.name: p.module for p in trainer.players}
    seen = {}

    class Keep(tinygan.Hook):
        def on_gradients(self, trainer, player):
            seen[player.name] = [p.grad.clone() for p in player.module.parameters()]
            nets["weights at " + player.name] = {
                name: {k: v.clone() for k, v in nets[name].state_dict().items()}
                for name in ("generator", "discriminator")
            }

    trainer.hooks = (Keep(),)
    z = trainer.noise(0, len(images))
    trainer.fit([images], epochs=1)

    loss = tinygan.losses.non_saturating
    for player in ("discriminator", "generator"):
        for name, weights in nets["weights at " + player].items():
            nets[name].load_state_dict(weights)
        fake = nets["generator"](z)
        if player == "discriminator":
            d = nets["discriminator"]
            cost = loss.real(d(images)).mean() + loss.fake(d(fake.detach())).mean()
        else:
            cost = loss.generator(nets["discriminator"](fake)).mean()
        expected = torch.autograd.grad(cost, list(nets[player].parameters()))
        for ours, theirs in zip(seen[player], expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_frozen_parameters_stay():
    """A parameter that does not require gradients is neither given one nor moved."""
    images = tiny_images()
    trainer = tiny_trainer()
    frozen = trainer.generator.main[0].weight.requires_grad_(False)
    before = frozen.clone()
    trainer.fit([images], epochs=2)

    assert torch.equal(frozen, before)
    other = trainer.generator.main[3].weight
    assert not torch.equal(other, tiny_trainer().generator.main[3].weight)


def test_a_step_never_waits_for_the_device():
    """After the first batch is checked, no step reads a value from the device."""

    class Operations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(function.overloadpacket)
            return function(*args, **(kwargs or {}))

    class Watch(tinygan.Hook):
        def on_step_end(self, trainer, report):
            # fit checks its first batch, which waits: watching begins after that.
            if trainer.step == 1:
                operations.__enter__()
            if trainer.step == 4:
                operations.__exit__(None, None, None)

    operations = Operations()
    # In one epoch, at whose end what was noted on the device is read.
    tiny_trainer(hooks=[Watch()]).fit([tiny_images()] * 5, steps=4)

    assert torch.ops.aten.convolution_backward in operations.seen
    # What item(), tolist(), float() and bool() come down to.
    assert torch.ops.aten._local_scalar_dense not in operations.seen


def test_nothing_keeps_the_graph():
    """A report's tensors are detached scalars, and no graph outlives the step."""
    images = tiny_images()
    reports = []
    trainer = tiny_trainer(hooks=[tinygan.hooks.every(1, lambda _, report: reports.append(report))])
    trainer.fit([images], epochs=1)

    values = [reports[0][name] for name in reports[0]]
    assert len(values) == 5
    assert all(v.grad_fn is None and v.dim() == 0 and v.isfinite() for v in values)
