"""Writes `variants_*.pth` beside itself; needs PyTorch (2.13.0 was used).

They hold what a state dict seldom has, so that the reader meets PyTorch's own way to write it:
views, tied and expanded tensors, every element type, and the odd objects that trainers add.
"""

import argparse
import collections
import datetime
import enum
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


class Stage(enum.Enum):
    LAST = 1


base = torch.arange(24.0).reshape(2, 3, 4)
state_dict = collections.OrderedDict(
    transposed=base.permute(2, 0, 1),
    tied_a=base,
    tied_b=base,
    part=base[1:, ::2],
    expanded=torch.arange(4.0).reshape(4, 1).expand(4, 50),
    parameter=torch.nn.Parameter(torch.arange(3.0)),
)
for name in (
    *("float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool"),
    *("uint16", "uint32", "float8_e4m3fn", "float8_e5m2"),
):
    state_dict[name] = torch.tensor([0, 1, 1, 0]).to(getattr(torch, name))
torch.save(state_dict, HERE / "variants_zip.pth")
torch.save(state_dict, HERE / "variants_legacy.pth", _use_new_zipfile_serialization=False)

model = torch.nn.Linear(3, 1)
torch.nn.init.constant_(model.weight, 1.0)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
averaged = {"module.weight": torch.full((1, 3), 2.0), "module.bias": torch.zeros(1)}
checkpoint = {
    "epoch": np.int64(3),
    "best_acc": torch.tensor(77.0),
    "acc": np.float32(0.5),
    "history": np.arange(3),
    "args": argparse.Namespace(data=pathlib.PurePosixPath("/data"), stage=Stage.LAST),
    "date": datetime.datetime(2020, 1, 1),
    "rng": torch.get_rng_state()[:64].clone(),
    "optimizer": optimizer.state_dict(),
    "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5).state_dict(),
    "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
    "state_dict_ema": averaged,
    "odd": [{1, 2}, frozenset([1]), {(1, 2): 3}, 1j, b"bytes", bytearray(b"x"), 10**30],
    "counts": collections.Counter("aab"),
    "default": collections.defaultdict(int, a=1),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "size": torch.Size([1, 2]),
}
torch.save(checkpoint, HERE / "variants_trainer.pth", pickle_protocol=5)
torch.save(checkpoint, HERE / "variants_trainer_legacy.pth", _use_new_zipfile_serialization=False)
