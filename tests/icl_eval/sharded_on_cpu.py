"""The command line with accelerate's FSDP2 on CPU processes.

accelerate shards on GPUs only, because it sets the kind of distribution from a list of devices; what follows is the
same on a CPU, so the kind is set here after the fact.
"""

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from icl_eval import cli, run, train
from icl_eval.run import sharding_plugin

make_accelerator, prepare = run.make_accelerator, train.prepare


def make_sharding(device: str, sharding: str, tracker: str | None) -> Accelerator:
    accelerator = make_accelerator(device, "none", tracker)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = sharding_plugin()
    assert accelerator.is_fsdp2
    return accelerator


def prepare_checked(*arguments: object) -> tuple:
    model, optimizer = prepare(*arguments)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model, optimizer


if __name__ == "__main__":
    run.make_accelerator, train.prepare = make_sharding, prepare_checked
    cli.main()
