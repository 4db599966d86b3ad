"""`da2ray tag`: give a snapshot a name."""

from rich.console import Console

from da2ray.commands.options import Command, CommandConfig, option
from da2ray.commands.shared import StorageClient, dataset_url_option, storage_client_option
from da2ray.errors import Exit
from da2ray.labels.dataset import require_dataset
from da2ray.labels.tags import write_tag
from da2ray.storage import open_store


class TagConfig(CommandConfig):
    """Give a snapshot a name, or move the name to it. `gc --keep` never removes a snapshot that has one."""

    url: str = dataset_url_option()
    name: str = option(..., "the name: letters, digits, . _ -", metavar="NAME", positional=True)
    snapshot: int | None = option(None, "number of the snapshot [the newest]", metavar="N", positional=True, ge=1)
    storage_client: StorageClient = storage_client_option()


def tag(config: TagConfig, console: Console) -> int:
    """Write the tag."""
    store = open_store(config.url, config.storage_client)
    require_dataset(store)
    made = write_tag(store, config.name, config.snapshot)
    console.print(f"{made.name} is snapshot {made.snapshot}")
    return Exit.DONE


COMMAND = Command(TagConfig, tag)
