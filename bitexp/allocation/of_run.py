"""The network of a run, ready to be allocated, with what its layers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitexp.allocation.costs import costs
from bitexp.allocation.network import Network, full_precision
from bitexp.allocation.program import Table
from bitexp.common.errors import UserError
from bitexp.config.schema import Settings, read_settings
from bitexp.run.build import build
from bitexp.run.checks import device_type
from bitexp.run.first_batch import calibrate, first_samples
from bitexp.run.parts import Parts
from bitexp.tasks.objectives import cross_entropy

EIGHT: Mapping[str, Any] = {"name": "int", "bits": 8}
"""The weights whose costs shares are of, where 8 bits are none of the widths."""


@dataclass(frozen=True)
class Case:
    """What is to be allocated.

    Args:
        section: the quantizer in full, at the first width. weights: its `weights` at each.
        costs: by name. at_8_bits: the same with 8 bits in every layer, summed.
    """

    network: Network
    section: Mapping[str, Any]
    weights: Sequence[Mapping[str, Any]]
    costs: Mapping[str, Table]
    at_8_bits: Mapping[str, float]


def case_of(config: Mapping[str, Any], bits: Sequence[float], samples: int) -> Case:
    """Builds the network of a config at each width, filled from what the run starts from.

    Args:
        config: of a run without steps, whose quantizer's weights have an option `bits`.
        samples: of the training data, to measure on.

    Raises:
        UserError: what cannot be built, or cannot be had at a width.
    """
    if config["quantizer"]["layers"]:
        raise UserError(
            f"quantizer={config['quantizer']['name']} has rules for layers of its own (quantizer.layers): "
            "which bits these get is what is asked, so choose another --quantizer"
        )
    own = config["quantizer"]["weights"]
    own = {"name": own} if isinstance(own, str) else own
    sections: list[Mapping[str, Any]] = [{**own, "bits": plain(width)} for width in bits]
    settings = [read_settings(with_weights(config, section)) for section in sections]
    twins = [build(one) for one in settings]
    eighth = twins[bits.index(8)] if 8 in bits else build(read_settings(with_weights(config, EIGHT)))
    plain_config = {**config, "quantizer": full_precision(config["quantizer"])}
    reference = build(read_settings(plain_config))
    try:
        network = network_of(reference, twins, bits, settings[0], samples)
        at_8 = network_of(reference, [eighth], [8], settings[0], samples=1)
    except ValueError as error:
        raise UserError(str(error)) from error
    known = costs(settings[0].packing.layout)
    tables = {name: network.cost(of) for name, of in known.items()}
    sums = {name: sum(of(layer, layer.quantized[0]) for layer in at_8.layers) for name, of in known.items()}
    return Case(network, twins[0].quantizer.to_json(), sections, tables, sums)


def network_of(
    reference: Parts, twins: Sequence[Parts], bits: Sequence[float], settings: Settings, samples: int
) -> Network:
    """The network in full precision with its twins, on the device of the run."""
    device, task = device_type(settings), reference.task
    for parts in (reference, *twins):
        calibrate(parts)
        parts.task.to(device).float()
    batches = [(x.to(device), y.to(device)) for x, y in first_samples(reference.data, samples)]
    return Network(
        reference.model,
        [parts.model for parts in twins],
        bits,
        lambda batch: cross_entropy(task.outputs(batch), batch[1]),
        batches,
    )


def with_weights(config: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other weights in its quantizer."""
    return {**config, "quantizer": {**config["quantizer"], "weights": dict(weights)}}


def plain(width: float) -> float | int:
    """A whole number as such: options of whole bits take no other."""
    return int(width) if width == int(width) else width
