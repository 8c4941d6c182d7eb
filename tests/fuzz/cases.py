"""Hostile files of three kinds, and what must hold whatever is in them.

A file is read, or refused with one of our errors: one short printable line that names the file. No code of its runs,
nothing else is raised, and a compressed file whose bytes changed is never taken for the one that was written.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from dprp.converter import MacBudget, Source, convert, plan_ranks, save_compressed, survey
from dprp.converter.chain.conversion import read_plan
from dprp.converter.chain.network import open_network
from dprp.converter.errors import ConverterError
from dprp.converter.storage.digest import digest
from dprp.models import build, load_weights
from dprp.models.errors import ModelsError

from .mutations import HOSTILE, changed_bytes, changed_json

OURS = (ConverterError, ModelsError)
LONGEST_MESSAGE = 1500


@dataclass(frozen=True)
class Outcome:
    """What became of one file: "read", "refused", or a violation in words."""

    verdict: str

    @property
    def violated(self) -> bool:
        """Whether something happened that must not."""
        return self.verdict not in ("read", "refused")


class Marker:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


class Fuzzer:
    """Makes and reads hostile files.

    Args:
        folder: an empty one, for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marker = folder / "code-ran"
        torch.manual_seed(0)
        self._dense = build("digits_cnn")
        self._plan = plan_ranks(survey(self._dense, torch.zeros(1, 1, 8, 8)), MacBudget(0.5))
        compressed = folder / "seed.safetensors"
        source = Source("digits_cnn", None, (1, 8, 8), (0.0,), (1.0,))
        save_compressed(convert(self._dense, self._plan), source, compressed)
        self._compressed = compressed.read_bytes()
        with safe_open(compressed, "pt") as file:
            self._metadata: dict[str, str] = file.metadata()
            self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        compressed.unlink()
        self.kinds: dict[str, Callable[[Random], Outcome]] = {
            "compressed": self._case_compressed,
            "foreign": self._case_foreign,
            "plan": self._case_plan,
        }

    def run(self, kind: str, case: int) -> Outcome:
        """One file, the same for the same number."""
        outcome = self.kinds[kind](Random(f"{kind} {case}"))
        if self._marker.exists():
            self._marker.unlink()
            return Outcome("code of the file's ran")
        left = [path.name for path in self._folder.iterdir()]
        return Outcome(f"left {left}") if left else outcome

    def _read(self, path: Path, read: Callable[[], None]) -> Outcome:
        try:
            read()
        except OURS as error:
            message = str(error)
            if not message.startswith(str(path)):
                return Outcome(f"the message does not name the file: {message[:300]}")
            if len(message) > LONGEST_MESSAGE + len(str(path)) or not message.isprintable():
                return Outcome(f"not one short printable line ({len(message)}): {message[:300]!r}")
            return Outcome("refused")
        except BaseException as error:
            return Outcome(f"{type(error).__name__}: {str(error)[:300]}")
        finally:
            path.unlink()
        return Outcome("read")

    def _case_compressed(self, random: Random) -> Outcome:
        path = self._folder / "a.safetensors"
        if random.random() < 0.4:
            path.write_bytes(changed_bytes(self._compressed, random))
            return self._read(path, lambda: self._same(open_network(str(path)).model))
        metadata, tensors = dict(self._metadata), dict(self._tensors)
        for _ in range(random.randint(1, 2)):
            random.choice((_change_metadata, _change_metadata, _change_tensor))(metadata, tensors, random)
        # Whoever means harm can count as well as we do.
        about = {name: metadata.get(name, "") for name in ("source", "plan", "tied")}
        save_file(tensors, path, metadata | {"sha256": digest(tensors, about)})

        def read() -> None:
            network = open_network(str(path))
            for parameter in network.model.parameters():
                assert not parameter.is_meta
                assert parameter.isfinite().all()
            str(network.source)
            try:
                network.classes()
            except OURS:  # of the network's own input, which need not name the file
                return

        return self._read(path, read)

    def _same(self, network: nn.Module) -> None:
        state = network.state_dict()
        assert state.keys() == self._tensors.keys()
        assert all(torch.equal(tensor, self._tensors[name]) for name, tensor in state.items())

    def _case_foreign(self, random: Random) -> Outcome:
        state: dict[str, Any] = dict(self._dense.state_dict())
        suffix = random.choice((".pth", ".pt", ".safetensors"))
        path = self._folder / f"a{suffix}"
        if random.random() < 0.5:
            for _ in range(random.randint(1, 2)):
                _change_tensor({}, state, random)
        if suffix == ".safetensors":
            content = save({name: tensor.contiguous() for name, tensor in state.items()})
        else:
            content = self._pickled(state, random)
        path.write_bytes(changed_bytes(content, random) if random.random() < 0.5 else content)
        before = {name: tensor.clone() for name, tensor in self._dense.state_dict().items()}

        def read() -> None:
            load_weights(self._dense, path)

        outcome = self._read(path, read)
        if outcome.verdict == "read":
            self._dense.load_state_dict(before)
        elif any(not torch.equal(before[name], tensor) for name, tensor in self._dense.state_dict().items()):
            return Outcome("refused, and the network changed")
        return outcome

    def _pickled(self, state: dict[str, Any], random: Random) -> bytes:
        content: Any = state
        kind = random.randrange(8)
        if kind == 0:
            content = {"state_dict": state, "code": Marker(self._marker)}
        elif kind == 1:
            content["self"] = content["state_dict"] = content
        elif kind == 2:
            content = {"model": {"model": {"model": state}}}
        elif kind == 3:
            content = random.choice(HOSTILE)
        elif kind == 4:
            state[random.choice(list(state))] = torch.zeros(1).expand(2**33)
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=random.random() < 0.7)
        if kind == 5:  # the archive packed tightly, and one of its tensors blown up
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(1))
                archive.writestr("archive/data/0", bytes(2**24))
            return packed.getvalue()
        return stream.getvalue()

    def _case_plan(self, random: Random) -> Outcome:
        path = self._folder / "a.json"
        text = self._plan.to_json()
        if random.random() < 0.3:
            path.write_bytes(changed_bytes(text.encode(), random))
        else:
            path.write_text(changed_json(text, random), encoding="utf-8", errors="surrogatepass")

        def read() -> None:
            plan = read_plan(path)
            str(plan)
            json.dumps(plan.to_json())
            try:
                convert(self._dense, plan)
            except OURS:  # a plan that reads may be another network's
                return

        return self._read(path, read)


def _change_metadata(metadata: dict[str, str], _tensors: dict[str, Tensor], random: Random) -> None:
    name = random.choice(("source", "source", "plan", "plan", "tied", "dprp_format"))
    if name not in metadata or random.random() < 0.05:
        metadata.pop(name, None)
    elif name == "dprp_format" or random.random() < 0.1:
        value = str(random.choice(HOSTILE)).encode(errors="replace").decode()
        metadata[name] = random.choice(("1", value))
    elif name == "tied":
        names = [*_tensors, "none"]
        metadata[name] = json.dumps({random.choice(names): random.choice(names)})
    else:
        try:
            metadata[name] = changed_json(metadata[name], random)
        except (ValueError, RecursionError):  # changed already, into something that is no JSON
            metadata[name] = ""


def _change_tensor(_metadata: dict[str, str], tensors: dict[str, Tensor], random: Random) -> None:
    name = random.choice(list(tensors))
    tensor = tensors[name]
    if tensor.is_complex():  # changed already
        return
    changes: tuple[Callable[[], Tensor], ...] = (
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.to(torch.int8),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e5m2),
        lambda: tensor.reshape(-1),
        lambda: tensor.unsqueeze(0).contiguous(),
        lambda: torch.zeros(0),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else -tensor,
        lambda: torch.full_like(tensor, 3e38) if tensor.is_floating_point() else tensor,
    )
    action = random.randrange(len(changes) + 3)
    if action < len(changes):
        tensors[name] = changes[action]()
    elif action == len(changes):
        del tensors[name]
    else:
        tensors[random.choice(("", "x" * 3000, "\x1b[31m", f"module.{name}", "module." * 500 + name))] = tensors.pop(
            name
        )
