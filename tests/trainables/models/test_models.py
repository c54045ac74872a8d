"""Claims of trainables.models: layouts and what is special about each; what every model holds is in its suite."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from trainables.models.build import MODELS, ModelError, build_model, check_output, register
from trainables.models.classifier import Classifier
from trainables.models.preact_resnet import PreActBlock

# Trainable parameters at 10 classes. PreAct-ResNet18 is 2,724 w^2 + 133 w + (8 w + 1) K at width w with K classes. The
# others are torchvision's published counts less what the 3x3 stem and the smaller head save; e.g. ConvNeXt-Tiny
# 28,589,128 - (4,704 - 2,688) - (769,000 - 7,690), DenseNet-121 7,978,856 - (9,408 - 1,728) - (1,025,000 - 10,250). The
# encoder is ResNet-18 with three linear layers (512 -> 512 -> 256 -> 10) in place of its own: + 396,554 - 5,130. The
# small fast net is 477 w^2 + 252 w + 336 + (4 w + 1) K at width w with K classes. The transformer of C channels has 6
# blocks of 12 C^2 + 13 C, 49 C of the patches, 2 C of the last norm and (C + 1) K.
PARAMETERS = {
    "preact_resnet18": 11_171_146,
    "encoder_resnet18": 11_173_962 + 396_554 - 5_130,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "vgg19_bn": 20_040_522,
    "mobilenet_v2": 2_236_682,
    "densenet121": 6_956_426,
    "convnext_tiny": 27_825_802,
    "airbench_cnn": 1_972_826,
    "vit_small": 2_680_906,
}


def images(n: int, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(name: str, seed: int, width: int | None = None) -> Classifier:
    return build_model(name, num_classes=3, width=width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=MODELS.names())
def model(request: pytest.FixtureRequest) -> Classifier:
    return build_model(request.param, num_classes=10)


@pytest.fixture(scope="module")
def small() -> Classifier:
    return seeded("preact_resnet18", 0, width=8)


def test_parameter_counts_are_pinned(model: Classifier, request: pytest.FixtureRequest) -> None:
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[request.node.callspec.params["model"]]


def test_every_model_has_five_stages_and_one_linear_head(model: Classifier, request: pytest.FixtureRequest) -> None:
    small = request.node.callspec.params["model"] in ("airbench_cnn", "vit_small")  # a stem and three groups
    assert len(model.stages) == (4 if small else 5)
    assert isinstance(model.classifier, nn.Linear)
    assert model.num_classes == 10
    assert not any(isinstance(m, nn.Linear) for m in model.neck.modules())


def test_stages_keep_room_for_attention_maps(model: Classifier, request: pytest.FixtureRequest) -> None:
    """At 32 pixels: 32, 32, 16, 8, 4 positions a side, so that NAD's maps of stages 2-4 are not single positions."""
    others = {"vgg19_bn": [32, 16, 8, 4, 2], "airbench_cnn": [31, 15, 7, 4], "vit_small": [8] * 4}
    model.eval()
    sides = []
    with torch.no_grad():
        maps = model.normalize(images(1))
        for stage in model.stages:
            maps = stage(maps)
            sides.append(maps.shape[-2:])
    expected = others.get(request.node.callspec.params["model"], [32, 32, 16, 8, 4])
    assert sides == [(side, side) for side in expected]


@pytest.mark.parametrize("size", [16, 64])
def test_every_model_runs_on_16_and_64_pixels(model: Classifier, size: int) -> None:
    model.eval()
    with torch.no_grad():
        assert model(images(1, size)).shape == (1, 10)


def test_preact_block_matches_its_formula() -> None:
    block = PreActBlock(4, 6, stride=2).eval()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a = torch.relu(block.bn1(x))
        assert block.shortcut is not None
        expected = block.conv2(torch.relu(block.bn2(block.conv1(a)))) + block.shortcut(a)
        torch.testing.assert_close(block(x), expected)


def test_preact_shortcut_is_the_input_itself_where_the_shape_stays(small: Classifier) -> None:
    shortcuts = [block.shortcut is not None for stage in list(small.stages)[1:] for block in stage.children()]
    assert shortcuts == [False, False, True, False, True, False, True, False]
    block = PreActBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(block(x), x)


def test_preact_has_no_norm_or_relu_between_the_last_block_and_the_pool(small: Classifier) -> None:
    assert [type(m) for m in small.neck.children()] == [nn.AdaptiveAvgPool2d, nn.Flatten]
    assert isinstance(small.last_block, PreActBlock)
    with torch.no_grad():
        assert (small.eval().features(images(4)) < 0).any()


def test_airbench_pools_before_its_activation_and_is_the_same_as_after_it() -> None:
    """The order costs a quarter of the activations; convolution and BatchNorm stay a pair."""
    model = seeded("airbench_cnn", 0, width=4).eval()
    kinds = [type(layer) for layer in model.stages[1][0]]
    assert kinds[1:] == [nn.BatchNorm2d, nn.MaxPool2d, nn.ReLU]
    conv, norm, pool, _ = model.stages[1][0]
    with torch.no_grad():
        maps = model.stages[0](model.normalize(images(2)))
        assert torch.equal(model.stages[1][0](maps), pool(torch.relu(norm(conv(maps)))))


def test_airbench_starts_near_the_identity_and_differs_by_seed() -> None:
    one, other = seeded("airbench_cnn", 0, width=4), seeded("airbench_cnn", 1, width=4)
    first, second = (model.stages[3][1][0].weight.detach() for model in (one, other))
    centres = first[:, :, 1, 1].diagonal()
    assert (centres[:8] > 0.9).all()
    assert (centres[8:] < 0.1).all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [9, 16, 33, 96])
def test_airbench_works_on_small_and_large_images(size: int) -> None:
    model = build_model("airbench_cnn", num_classes=3, width=4, image_size=size).eval()
    with torch.no_grad():
        assert model(images(2, size)).shape == (2, 3)


def test_width_scales_every_stage(small: Classifier) -> None:
    small.eval()
    channels = []
    with torch.no_grad():
        maps = images(1)
        for stage in small.stages:
            maps = stage(maps)
            channels.append(maps.shape[1])
    assert channels == [8, 8, 16, 32, 64]
    assert sum(p.numel() for p in small.parameters()) == 2724 * 8**2 + 133 * 8 + (8 * 8 + 1) * 3


def test_normalisation_is_inside_the_model() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    plain = seeded("preact_resnet18", 0, width=4).eval()
    with_constants = build_model(
        "preact_resnet18", num_classes=3, width=4, mean=mean, std=std, generator=torch.Generator().manual_seed(0)
    ).eval()
    x = images(2)
    by_hand = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(with_constants(x), plain(by_hand))


def test_normalisation_travels_with_the_weights() -> None:
    source = build_model("preact_resnet18", num_classes=3, width=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    target = build_model("preact_resnet18", num_classes=3, width=4)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.normalize.std, torch.tensor([0.2, 0.2, 0.1]).view(1, 3, 1, 1))


def test_two_models_of_one_generator_differ() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (
        build_model("preact_resnet18", num_classes=3, width=4, generator=generator).classifier.weight for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'preact_resnet-18': did you mean 'preact_resnet18'\?"):
        build_model("preact_resnet-18", num_classes=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet18", "width": 32}, r"width: resnet18 has a fixed width, got 32"),
        ({"name": "preact_resnet18", "width": 0}, r"width: must be 1 or more, got 0"),
        ({"name": "preact_resnet18", "num_classes": 1}, r"num_classes: must be 2 or more, got 1"),
        ({"name": "vgg19_bn", "image_size": 8}, r"image_size: vgg19_bn needs 16 pixels or more, got 8"),
        ({"name": "airbench_cnn", "image_size": 8}, r"image_size: airbench_cnn needs 9 pixels or more, got 8"),
        ({"name": "resnet18", "image_size": 4}, r"image_size: resnet18 needs 8 pixels or more, got 4"),
        ({"name": "resnet18", "std": (1.0, 0.0, 1.0)}, r"std > 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_model(**{"num_classes": 3, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_models_are_listed_without_the_library_that_some_are_built_with() -> None:
    program = (
        "import sys; from trainables.models.build import MODELS; MODELS.names(); print('torchvision' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.usefixtures("_as_before")
def test_what_a_model_gives_is_looked_at_before_it_is_trained() -> None:
    def broken(num_classes: int, mean: object, std: object) -> object:
        model = build_model("preact_resnet18", num_classes=num_classes, width=2)
        with torch.no_grad():
            model.classifier.bias[0] = float("nan")
        return model

    register("nan_model", "for tests")(broken)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="model nan_model: gives logits that are not finite"):
        check_output(build_model("nan_model", num_classes=3), "nan_model", 16)
    register("no_model", "for tests")(lambda num_classes, mean, std: nn.Linear(1, 1))  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match="model no_model: its function must return a Classifier, got Linear"):
        build_model("no_model", num_classes=3)
    check_output(build_model("preact_resnet18", num_classes=3, width=2), "preact_resnet18", 16)
