from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from dprp.models import ArchitectureError, build, info, names


def test_every_name_has_info_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("downloads")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert set(torchvision.models.list_models(module=torchvision.models)) < set(names())
    for name in names():
        about = info(name)
        assert about.name == name
        assert about.input_shape is not None
        assert len(about.mean) == len(about.std) == about.input_shape[0]


@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [
        ("digits_cnn", (1, 8, 8), (0.0,)),
        ("cifar_resnet20", (3, 32, 32), (0.485, 0.456, 0.406)),
        ("resnet18", (3, 224, 224), (0.485, 0.456, 0.406)),
        ("inception_v3", (3, 299, 299), (0.485, 0.456, 0.406)),
        ("efficientnet_v2_l", (3, 480, 480), (0.5, 0.5, 0.5)),
        ("anything:at_all", None, (0.485, 0.456, 0.406)),
    ],
)
def test_info(name: str, shape: tuple[int, int, int] | None, mean: tuple[float, ...]) -> None:
    assert info(name).input_shape == shape
    assert info(name).mean == mean


@pytest.mark.parametrize(
    ("name", "classes", "outputs"),
    [
        ("digits_cnn", None, 10),
        ("cifar_resnet32", 100, 100),
        ("resnet18", None, 1000),
        ("resnet18", 7, 7),
        ("mobilenet_v2", 10, 10),
        ("squeezenet1_1", 5, 5),
        ("googlenet", 4, 4),
        ("inception_v3", 4, 4),
    ],
)
def test_build_gives_an_eval_network_of_so_many_classes(name: str, classes: int | None, outputs: int) -> None:
    model = build(name, classes=classes)
    assert not model.training
    shape = info(name).input_shape
    assert shape is not None
    with torch.inference_mode():
        assert model(torch.randn(1, *shape)).shape == (1, outputs)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_and_the_input_transform_kept(name: str) -> None:
    model = build(name, classes=3)
    assert not any("aux" in key.lower() for key in model.state_dict())
    assert model.transform_input is True


def test_unknown_name_offers_close_ones() -> None:
    for ask in (build, info):
        with pytest.raises(ArchitectureError, match=r"resnet81: no such architecture.*did you mean .*resnet18"):
            ask("resnet81")
    with pytest.raises(ArchitectureError, match=r"names\(\) lists"):
        build("zzzzzzzz")


@pytest.mark.parametrize("classes", [0, -1])
def test_classes_below_one_are_refused(classes: int) -> None:
    with pytest.raises(ArchitectureError, match=rf"resnet18: classes {classes} is not allowed; pass 1 or more"):
        build("resnet18", classes=classes)


OWN = """
import sys
from torch import nn

VERSION = 3

def plain():
    return nn.Linear(4, 3)

def with_classes(classes=3):
    return nn.Linear(4, classes)

def with_num_classes(width=4, num_classes=3):
    return nn.Linear(width, num_classes)

def with_anything(**options):
    return nn.Linear(4, options.get("num_classes", 3))

def text():
    return "network"

def fails():
    raise KeyError("no such width")

def leaves():
    sys.exit(3)

def needs(width):
    return nn.Linear(width, 3)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own in the current directory; its name is new in each test."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0\n")
    (tmp_path / f"{name}_lacking.py").write_text("import dprp_no_such_package\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_own_function_is_found_in_the_current_directory(own: str) -> None:
    import sys

    path = list(sys.path)
    model = build(f"{own}:plain")
    assert isinstance(model, nn.Linear)
    assert not model.training
    assert sys.path == path


@pytest.mark.parametrize("function", ["with_classes", "with_num_classes", "with_anything"])
def test_own_function_gets_classes_only_when_asked(own: str, function: str) -> None:
    assert build(f"{own}:{function}").out_features == 3
    assert build(f"{own}:{function}", classes=5).out_features == 5


@pytest.mark.parametrize(
    ("spec", "classes", "message"),
    [
        ("{own}:", None, r"write package.module:function"),
        (":plain", None, r"write package.module:function"),
        ("{own}.py:plain", None, r"write the module as Python imports it, for example {own}:plain"),
        ("no_such_module_here:plain", None, r"no module no_such_module_here; install it, or run from"),
        ("{own}_lacking:plain", None, r"it imports dprp_no_such_package, which is not installed"),
        ("{own}_broken:plain", None, r"importing {own}_broken raised ZeroDivisionError: division by zero"),
        ("{own}:plane", None, r"has no plane; it has fails, leaves, needs, plain"),
        ("{own}:VERSION", None, r"VERSION is a int, not a function"),
        ("{own}:text", None, r"returned str; it must return a torch.nn.Module"),
        ("{own}:fails", None, r"raised KeyError: 'no such width'; it must work with no arguments"),
        ("{own}:leaves", None, r"raised SystemExit: 3"),
        ("{own}:needs", None, r"raised TypeError: .*missing 1 required positional argument"),
        ("{own}:plain", 5, r"takes neither num_classes nor classes"),
    ],
)
def test_own_function_errors(own: str, spec: str, classes: int | None, message: str) -> None:
    spec = spec.format(own=own)
    with pytest.raises(ArchitectureError, match=message.format(own=own)) as caught:
        build(spec, classes=classes)
    assert str(caught.value).startswith(f"{spec}: ")
    assert "\n" not in str(caught.value)
