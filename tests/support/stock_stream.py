"""A rank of a stock WebDataset stream: `python stock_stream.py SHARDS OUT` writes the keys of two epochs to OUT."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch.distributed as dist
from torch.utils.data import DataLoader

from shards.webdataset import pipeline


def main() -> None:
    dist.init_process_group("gloo")
    loader = DataLoader(
        pipeline(sys.argv[1], shuffle=3),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    epochs = [[(sample["__key__"], int(sample["tile"].sum())) for sample in loader] for _ in range(2)]
    (Path(sys.argv[2]) / f"rank{dist.get_rank()}.json").write_text(json.dumps(epochs))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
