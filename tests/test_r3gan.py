"""R3GAN's nets: the paper's sizes and first weights, other sizes, and second derivatives."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tinygan
from tinygan import losses, penalties, recipes, sampling
from tinygan._execution import capture
from tinygan.explorer import directions
from tinygan.nets import gradients, r3gan
from tinygan.nets.saved import describe

import strategies
from helpers import assert_identical, fingerprint
from recorder import CPURecorder

KINDS = (tinygan.R3GANGenerator, tinygan.R3GANDiscriminator)


def nets(image_size=16, latent_dim=5, widths=(16, 12, 6), *, awake=True, **both):
    """Return a small G and D, the same each time, whose blocks do something already if awake."""
    torch.manual_seed(0)
    generator = tinygan.R3GANGenerator(image_size, latent_dim=latent_dim, widths=widths, **both)
    discriminator = tinygan.R3GANDiscriminator(image_size, widths=widths, **both)
    for net in (generator, discriminator):
        for block in blocks(net) if awake else ():
            nn.init.normal_(block.narrow.weight, 0, 0.2)
            nn.init.normal_(block.widen.bias, 0, 0.2)
            nn.init.normal_(block.mix.bias, 0, 0.2)
    return generator, discriminator


def blocks(net):
    """Return the residual blocks of a net."""
    return [layer for layer in net.main if isinstance(layer, r3gan._Block)]


def trainer(**arguments):
    """Return a trainer of the paper's game for small nets."""
    return tinygan.GANTrainer(
        *nets(),
        loss=losses.relativistic,
        penalties=[penalties.r1(0.1, every=1), penalties.r2(0.1, every=1)],
        ema_half_life=100,
        **arguments,
    )


def batches():
    """Return two batches of images in [-1, 1]."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return [images[:4], images[4:]]


TABLE_9 = {  # the paper's: size, channels, classes, channels per group, and G's and D's millions
    "Stacked MNIST": (32, (768,) * 4, None, 16, "20.73", "20.68"),
    "CIFAR-10": (32, (768,) * 4, 10, 16, "20.78", "21.28"),
    "FFHQ-256": (256, (768, 768, 768, 768, 384, 192, 96), None, 16, "23.06", "23.01"),
    "FFHQ-64": (64, (768, 768, 768, 768, 384), None, 16, "22.43", "22.38"),
    "ImageNet-32": (32, (1536,) * 4, 1000, 32, "82.91", "86.55"),
    "ImageNet-64": (64, (1536,) * 5, 1000, 32, "103.57", "107.21"),
}


@pytest.mark.parametrize("data", TABLE_9)
def test_all_nets_of_the_paper_have_its_parameters(data):
    """To the last digit of Table 9; but for ImageNet-64 one number says the widths."""
    size, widths, num_classes, group_width, *millions = TABLE_9[data]
    for said in {widths, widths if data == "ImageNet-64" else widths[0]}:
        with torch.device("meta"):
            both = [
                kind(size, widths=said, num_classes=num_classes, group_width=group_width)
                for kind in KINDS
            ]
        assert [net.widths for net in both] == [widths] * 2
        counts = [sum(weight.numel() for weight in net.parameters()) for net in both]
        assert [f"{count / 1e6:.2f}" for count in counts] == millions


@given(
    smallest=st.tuples(st.integers(2, 16), st.integers(2, 9)),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    channels=strategies.channels,
    count=st.integers(1, 3),
    num_blocks=st.integers(1, 2),
    group_width=st.integers(1, 20),
    num_classes=st.none() | st.integers(1, 4),
)
def test_every_size_width_and_number_of_classes(
    smallest, widths, channels, count, num_blocks, group_width, num_classes
):
    """G makes images of just the asked shape, D judges each, and all weights learn."""
    size = tuple(side * 2 ** (len(widths) - 1) for side in smallest)
    both = nets(
        size, widths=widths, channels=channels, blocks=num_blocks, group_width=group_width,
        num_classes=num_classes,
    )  # fmt: skip
    labels = [] if num_classes is None else [torch.arange(count) % num_classes]
    generator, discriminator = (net.double() for net in both)
    images = generator(torch.randn(count, 5, dtype=torch.float64), *labels)
    logits = discriminator(images, *labels)
    (logits + logits.square()).sum().backward()

    assert images.shape == (count, channels, *size)
    assert logits.shape == (count,)
    for net in both:
        for name, weight in net.named_parameters():
            assert weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 0, name
        for block in blocks(net):
            inner, grouped = block.mix.weight.shape[:2]
            assert inner == 2 * len(block.narrow.weight)
            divisors = [n for n in range(1, inner + 1) if inner % n == 0]
            assert grouped == min([n for n in divisors if n >= group_width], default=inner)


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        (64, (96, 96, 96, 96, 48)), (128, (96, 96, 96, 96, 48, 24)), (48, (96, 96, 96, 48)),
        (28, (96, 96, 96)), (9, (96,)), ((64, 160), (96, 96, 96, 96, 48)), ((24, 36), (96,) * 3),
    ],
)  # fmt: skip
def test_one_width_is_that_of_maps_up_to_32_pixels(size, widths):
    """It halves beyond; there are as many stages as halve both sides to 4 pixels or more."""
    for kind in KINDS:
        with torch.device("meta"):
            assert kind(size, widths=96).widths == widths


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image_size": 64, "widths": (8, 8)}, "end with 2 to 16 pixels on the shorter"),
        ({"image_size": 36, "widths": [8] * 4}, "stay whole when halved once for each width"),
        ({"image_size": (61, 47)}, "; use 60x48, or the DCGAN nets"),
        ({"image_size": 8, "widths": [8] * 4}, ", and 4 for widths; use one int for widths"),
        ({"image_size": 1}, "got 1x1, and 1 for widths; use 2x2, or"),
        ({"image_size": "64"}, "image_size must be an int or (height, width), got '64'"),
        ({"widths": ()}, "widths must be an int, got ()"),
        ({"widths": "wide"}, "widths must be an int, got 'wide'"),
        ({"widths": (8, 0)}, "widths must be at least 1, got 0; use 1 or more."),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("channels", "widths", "blocks", "group_width", "num_classes")
        ),
    ],
)
def test_what_makes_no_net_is_refused(arguments, sentence):
    """The error names the argument, the value, the rule and the remedy."""
    for kind in KINDS:
        with torch.device("meta"), pytest.raises(ValueError, match=re.escape(sentence)):
            kind(**arguments)


def test_wrong_inputs_are_named():
    """Noise, images and labels that a net was not built for; nets that do not fit each other."""
    generator, discriminator = nets()
    with pytest.raises(ValueError, match=r"z must be \(N, 5\), got \(2, 6\)"):
        generator(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 16, 16\), got \(2, 3, 8, 8\)"):
        discriminator(torch.zeros(2, 3, 8, 8))
    inputs = torch.zeros(1, 5), torch.zeros(1, 3, 16, 16)
    for net, each in zip((generator, discriminator), inputs):
        with pytest.raises(ValueError, match="labels must be given to a net with num_classes, and"):
            net(each, torch.zeros(1).long())
    with pytest.raises(ValueError, match="generator and discriminator must agree on image_size"):
        tinygan.GANTrainer(generator, tinygan.R3GANDiscriminator(32, widths=8))
    assert torch.equal(generator(torch.ones(2, 5)), generator(torch.ones(2, 5, 1, 1)))


def mean_square(x):
    """Return the mean of the squares of some numbers."""
    return x.square().mean().item()


def test_first_weights_keep_the_variance():
    """Of what a layer is given; resampling takes some, and blocks are the identity."""

    # A layer's factor has a relative deviation of sqrt(2 / (rank of its input x outputs)), here at
    # most .072, of layers that have 3 colours on one side. The bound is 4 of these.
    def kept(made, given, factor=1.0):
        return mean_square(made) == pytest.approx(factor * mean_square(given), rel=0.29)

    torch.manual_seed(0)
    same = {"widths": (128, 192, 128), "num_classes": 64}
    generator = tinygan.R3GANGenerator(8, latent_dim=64, **same)
    discriminator = tinygan.R3GANDiscriminator(8, **same)
    z = torch.randn(64, 64 + 64)
    scales = generator.scale(z)
    first = generator.basis * scales[:, None, None, :]
    assert kept(scales, z)
    assert kept(first, z)
    for net, inputs in ((generator, first), (discriminator, torch.randn(64, 8, 8, 3))):
        maps = inputs
        for layer in net.main:
            made = layer(maps)
            if isinstance(layer, nn.Linear):
                assert kept(made, maps)
            elif isinstance(layer, r3gan._Block):
                assert torch.equal(made, maps)
            maps = made
    features = (maps * discriminator.basis).sum((1, 2))
    assert kept(features, maps)
    assert kept(discriminator.last(features), features)
    # One-hot vectors through a linear layer; the paper's second has a gain of 1 / sqrt(C).
    assert mean_square(generator.embedding.weight) == pytest.approx(1 / 64, rel=0.2)
    assert mean_square(discriminator.embedding.weight) == pytest.approx(1 / 64 / 128, rel=0.2)


@pytest.mark.parametrize(("stages", "num_blocks"), [(1, 1), (2, 4)])
def test_what_blocks_add_starts_at_zero_and_small(stages, num_blocks):
    """Both hidden layers keep L^-1/2 of the variance, of a net of L blocks: fix-up."""
    for net in nets(8, widths=[64] * stages, blocks=num_blocks, awake=False):
        assert len(blocks(net)) == stages * num_blocks
        for block in blocks(net):
            assert not block.narrow.weight.any()
            x = torch.randn(8, 8, 8, 64)
            for layer, inputs in ((block.widen, x), (block.mix, x.repeat(1, 1, 1, 2))):
                assert not layer.bias.any()
                made = gradients.leaky_relu(layer(inputs))[:, 1:-1, 1:-1]  # zeros lie beyond
                wanted = (stages * num_blocks) ** -0.5
                assert mean_square(made) == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 2)])
def test_resampling_is_bilinear(size):
    """Of images that go on with zeros; either way is the other's adjoint, but for a factor of 4."""
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    up, down = r3gan._Resample(up=True)(x), r3gan._Resample(up=False)(x)
    to = {"mode": "bilinear", "antialias": True, "align_corners": False}
    wide = F.pad(x.permute(0, 3, 1, 2), [2] * 4)
    doubled = F.interpolate(wide, scale_factor=2, **to)[..., 4:-4, 4:-4]
    halved = F.interpolate(wide, scale_factor=0.5, **to)[..., 1:-1, 1:-1]
    torch.testing.assert_close(up.permute(0, 3, 1, 2), doubled, rtol=0, atol=1e-12)
    torch.testing.assert_close(down.permute(0, 3, 1, 2), halved, rtol=0, atol=1e-12)
    small = torch.randn_like(down)
    again = r3gan._Resample(up=True)(small)
    assert (4 * (down * small)).sum().item() == pytest.approx((x * again).sum().item())


def test_second_derivatives_are_right():
    """Of D by its images and weights, of resampling, and of what both are made of."""
    _, net = nets(4, widths=(3, 2), blocks=1, group_width=2, num_classes=2)
    net.double()
    names, weights = zip(*net.named_parameters())
    labels = torch.tensor([0, 1])

    def judged(images, *weights):
        return torch.func.functional_call(net, dict(zip(names, weights)), (images, labels))

    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def squared_slope(*weights):
        (slope,) = torch.autograd.grad(judged(images, *weights).sum(), images, create_graph=True)
        return slope.square().sum()

    assert torch.autograd.gradcheck(judged, (images, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: judged(x, *weights), images)
    assert torch.autograd.gradcheck(squared_slope, weights, fast_mode=True)
    for up in (True, False):
        x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(r3gan._Resample(up=up), x)


def slopes(net, images):
    """Return the gradient of R1 by the weights that it depends on."""
    images = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(images).sum(), images, create_graph=True)
    weights = [weight for name, weight in net.named_parameters() if not name.endswith("bias")]
    return torch.autograd.grad(slope.square().sum(), weights)


def test_gradients_are_pytorchs_however_they_are_taken(monkeypatch):
    """Twice from one graph, for images first, with weights that stay; and by tracing."""

    def taken():
        _, net = nets(8, widths=(8, 4), group_width=4)
        net = net.double()
        for block in net.modules():
            if isinstance(block, r3gan._Block):
                block.mix.weight.requires_grad_(False)
                torch.nn.init.normal_(block.narrow.weight, std=0.3)
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        x = images.clone().requires_grad_()
        logits = net(x)
        found = [*torch.autograd.grad(logits.sum(), x, retain_graph=True)]
        for power in (2, 3):
            costs = logits.pow(power).sum()
            found += torch.autograd.grad(costs, weights, retain_graph=True)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        (slope.square().sum() + logits.sum()).backward()
        return [*found, x.grad, *(weight.grad for weight in weights)]

    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    found = taken()
    monkeypatch.setattr(gradients, "_is_derived", lambda *inputs: False)
    for one, other in zip(found, taken(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class Arithmetic(TorchDispatchMode):
    """Counts the multiplications of linear layers and convolutions, in any direction."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made, aten = func(*args, **(kwargs or {})), torch.ops.aten
        match func._overloadpacket:
            case aten.mm | aten.addmm:
                self.count += args[-1].numel() * len(made)
            case aten.convolution:
                x, weight, *_, transposed, _, _ = args
                where = x if transposed else made
                self.count += where[:, 0].numel() * weight.numel()
            case aten.convolution_backward:
                grad, x, weight, *_, transposed, _, _, wanted = args
                where = x if transposed else grad
                self.count += where[:, 0].numel() * weight.numel() * sum(wanted[:2])
        return made


def test_r1_has_pytorchs_gradients_and_costs_four_passes(monkeypatch):
    """One forward, one back to the images, two for its gradient; G's turn has none for D."""
    _, net = nets(16, widths=(32, 32, 16), group_width=8)
    net, images = net.double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with Arithmetic() as forward:
        net(images)
    with Arithmetic() as r1:
        found = slopes(net, images)
    with Arithmetic() as turn:
        torch.autograd.grad(net(images.requires_grad_()).sum(), images)
    assert 3.9 * forward.count < r1.count <= 4 * forward.count
    assert turn.count == 2 * forward.count
    monkeypatch.setattr(gradients, "_is_derived", lambda *inputs: False)
    for one, other in zip(found, slopes(net, images)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["module", "autocast"])
def test_in_bfloat16(how):
    """Both nets work in it, on CPUs too, and are near those in float32."""
    for net, x in zip(nets(), (torch.randn(4, 5), batches()[0])):
        wanted = net(x)
        if how == "module":
            made = net.bfloat16()(x.bfloat16())
        else:
            with torch.autocast("cpu", torch.bfloat16):
                made = net(x)
        made.square().sum().backward()
        assert (made - wanted).norm() < 0.05 * wanted.norm()  # it has 8 bits
        assert all(weight.grad.isfinite().all() for weight in net.parameters())


def test_memory_formats_agree():
    """Images and weights in channels last make the same images, logits and gradients."""
    for net, x in zip(nets(), (torch.randn(4, 5).double(), batches()[0].double())):
        other = copy.deepcopy(net.double()).to(memory_format=torch.channels_last)
        other_x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
        made = net(x), other(other_x)
        torch.testing.assert_close(*made)
        for each in made:
            each.square().sum().backward()
        for one, two in zip(net.parameters(), other.parameters()):
            torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_what_is_saved_is_loaded(tmp_path, num_classes):
    """With its arguments, bit for bit; what resampling computes is no weight."""
    net, _ = nets((16, 24), num_classes=num_classes, blocks=1, group_width=6)
    net.save(tmp_path / "g", step=3)
    loaded = tinygan.load_generator(tmp_path / "g")
    assert describe(loaded) == describe(net)
    assert (loaded.widths, loaded.blocks, loaded.group_width) == ((16, 12, 6), 1, 6)
    assert net.state_dict().keys() == {name for name, _ in net.named_parameters()}
    z = torch.randn(4, 5)
    assert torch.equal(sampling.generate(loaded, z), sampling.generate(net, z))


def test_samples_are_cut_and_what_d_sees_is_not():
    """In evaluation mode images are in [-1, 1]."""
    net, _ = nets()
    z = torch.randn(50, 5)
    made = net(z)
    assert made.abs().max() > 1.2
    assert torch.equal(net.eval()(z), made.clamp(-1, 1))


def test_labels_are_classes_or_shares_of_them():
    """A label is the share 1 of its class, and both nets tell classes apart."""
    generator, discriminator = nets(num_classes=3)
    z, labels = torch.randn(3, 5), torch.tensor([2, 0, 1])
    shares = F.one_hot(labels, 3).float()
    assert torch.equal(generator(z, labels), generator(z, shares))
    assert not torch.allclose(generator(z, labels), generator(z, shares / 2))
    images = batches()[0][:1].expand(3, -1, -1, -1)
    assert len({round(logit, 5) for logit in discriminator(images, labels).tolist()}) == 3


def test_it_trains_without_a_warning():
    """By the paper's game; images beyond [-1, 1] are right, and the average's samples are cut."""
    made = trainer()
    made.fit(batches(), epochs=1)
    assert made.sample(9).abs().max() <= 1
    before = dict(nets()[0].named_parameters())
    after = made.generator.named_parameters()
    assert [name for name, weight in after if torch.equal(weight, before[name])] == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_captured_steps_are_eager_ones(device, monkeypatch):
    """Bit for bit; on a GPU a step that copies from the host could not be recorded."""
    if device == "cpu":
        monkeypatch.setattr(capture, "recorder_for", lambda device: CPURecorder())
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    execution = tinygan.Execution(capture=True)
    eager, captured = trainer(device=device), trainer(device=device, execution=execution)
    for each in (eager, captured):
        each.fit(batches(), steps=5)
    assert_identical(fingerprint(eager), fingerprint(captured))


def test_the_recipe_is_captured_to_its_end(monkeypatch, caplog):
    """Schedules of Adam's betas record graphs anew, but not so often that capture is given up."""
    monkeypatch.setattr(capture, "recorder_for", lambda device: CPURecorder())
    ran, image = [], torch.rand(1, 3, 8, 8) * 2 - 1
    for captured in (False, True):
        recipe = recipes.r3gan(recipes.r3gan_nets(8, width=8), burn_in=20)
        ran.append(recipe.trainer(execution=tinygan.Execution(capture=captured)))
        ran[-1].fit([image], epochs=22)
    assert_identical(*map(fingerprint, ran))
    assert "eagerly" not in caplog.text


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_a_traced_net_has_pytorchs_own_operations(tmp_path):
    """It can be saved, though weights take gradients."""
    net, _ = nets(8, widths=(4, 2), blocks=1)
    z = torch.randn(2, net.latent_dim)
    torch.jit.trace(net.eval(), z).save(tmp_path / "net.pt")
    assert torch.equal(torch.jit.load(tmp_path / "net.pt")(z), net(z))


@pytest.mark.parametrize("lower", [False, True], ids=["float32", "bfloat16"])
def test_compiled_nets_are_eager_ones(lower):
    """The compiler sees PyTorch's own operations, and their gradients are the same."""
    torch.compiler.reset()
    _, net = nets(4, widths=(4, 2), blocks=1)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    images, weights = torch.randn(2, 3, 4, 4), [*net.parameters()]
    found = []
    for f in (net, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=lower, cache_enabled=False):
            logits = f(images)
        assert logits.dtype == (torch.bfloat16 if lower else torch.float32)
        found.append(torch.autograd.grad(logits.square().sum(), weights))
    torch.testing.assert_close(*found)
    torch.compiler.reset()


def test_nets_without_memory_have_shapes():
    """On the device "meta", for which there is no autocast."""
    with torch.device("meta"):
        generator, discriminator = nets(8, widths=(4, 2), blocks=1)
        images = generator(torch.zeros(2, generator.latent_dim))
        assert (images.shape, discriminator(images).shape) == ((2, 3, 8, 8), (2,))


@pytest.mark.parametrize("num_classes", [None, 3])
def test_directions_are_those_of_the_layer_that_takes_z(num_classes):
    """Not of a block with as many inputs."""
    net, _ = nets(latent_dim=16, num_classes=num_classes)
    ways, known = directions(net)
    gains = (ways @ net.scale.weight.detach()[:, :16].T).norm(dim=1)
    assert known
    assert torch.allclose(gains, torch.linalg.svdvals(net.scale.weight.detach()[:, :16])[:6])
