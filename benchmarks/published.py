"""The published network computed the published way: every input of every pair joined, everything materialised.

The same equations as :mod:`egnn_md.nn.fast_egnn`, and the same parameters. What differs is how they are worked out:
[h_i, h_j, |x_i - x_j|², e_ij] exists as a tensor (E, 2F + 1 + D) and passes one linear map; [h_i, s_c, |z_c - x_i|,
M[:, c]] exists as (N, 2F + 1 + C, C); means are scattered sums over receivers, divided by counts that are made anew
each time, as wide as the values. It is what the speed of the other paths is compared with, and no part of the product.

| symbol | variable |
| --- | --- |
| z_c, s_c | ``places`` (G, 3, C), ``states`` (G, F, C) |
| m_ij, m_ic | ``message`` (E, F), ``virtual`` (N, C, F) |
| M | ``mixing`` (G, C, C) |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from egnn_md.errors import InputError
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNLayer
from egnn_md.nn.layer import DISTANCE_OFFSET
from egnn_md.nn.perceptron import SplitPerceptron


def scattered_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """(size, K) means of rows of ``values`` (E, K); counts are summed anew, in the shape of the values."""
    wide = index.unsqueeze(1).expand_as(values)
    total = values.new_zeros(size, values.shape[1]).scatter_add(0, wide, values)
    count = values.new_zeros(size, values.shape[1]).scatter_add(0, wide, torch.ones_like(values))
    return total / count.clamp(min=1.0)


def _joined(mlp: SplitPerceptron, inputs: Tensor) -> Tensor:
    """φ of one joined tensor: linear, SiLU, linear, SiLU."""
    return nn.functional.silu(mlp.second(nn.functional.silu(mlp.first(inputs))))


class PublishedFastEGNN(nn.Module):
    """``FastEGNN`` with the same parameters (shared, not copied), computed as published.

    Args:
        network: of messages ``egnn``, without fields.

    Raises:
        InputError: another kind of message, or fields, which the published network does not have.
    """

    def __init__(self, network: FastEGNN) -> None:
        super().__init__()
        config = network.config
        if config.messages != "egnn" or config.fields:
            raise InputError(
                f"the published network has messages='egnn' and no fields, not messages={config.messages!r} and "
                f"{config.fields} fields"
            )
        self.network = network

    def forward(
        self,
        node_features: Tensor,
        positions: Tensor,
        velocities: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        num_graphs: int = 1,
        edge_features: Tensor | None = None,
        node_attributes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`egnn_md.nn.fast_egnn.FastEGNN.forward`, for open systems.

        Args:
            node_features: (N, node_features).
            positions: (N, 3).
            velocities: (N, 3).
            edge_index: (2, E); row 0 receives.
            batch: (N,) graph of each particle.
            num_graphs: G.
            edge_features: (E, D).
            node_attributes: (N, A).

        Returns:
            positions (N, 3), virtual positions (G, 3, C), features (N, F).
        """
        network = self.network
        features = network.embedding(node_features)
        channels = network.virtual_features.shape[2]
        places = scattered_mean(positions, batch, num_graphs).unsqueeze(2).repeat(1, 1, channels)
        states = network.virtual_features.repeat(num_graphs, 1, 1)
        gravity = positions.new_tensor(network.gravity)
        for layer in network.layers:
            assert isinstance(layer, FastEGNNLayer)
            features, positions, states, places = _layer(
                layer, features, positions, velocities, states, places, edge_index, batch, num_graphs,
                edge_features, node_attributes, gravity,
            )  # fmt: skip
        return positions, places, features


def _layer(
    layer: FastEGNNLayer,
    features: Tensor,
    positions: Tensor,
    velocities: Tensor,
    states: Tensor,
    places: Tensor,
    edge_index: Tensor,
    batch: Tensor,
    graphs: int,
    edge_features: Tensor | None,
    node_attributes: Tensor | None,
    gravity: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nodes = len(features)
    receivers, senders = edge_index[0], edge_index[1]
    difference = positions[receivers] - positions[senders]
    squared = (difference**2).sum(1, keepdim=True)
    parts = [features[receivers], features[senders], squared]
    if edge_features is not None:
        parts.append(edge_features)
    message = layer.edge_gate(_joined(layer.edge_mlp, torch.cat(parts, 1)))
    if layer.normalize:
        difference = difference / (squared.sqrt().detach() + DISTANCE_OFFSET)
    moved = positions + scattered_mean(difference * layer.coord_mlp(message), receivers, nodes)
    moved = moved + layer.velocity_mlp(features) * velocities
    if layer.has_gravity:
        moved = moved + layer.gravity_mlp(features) * gravity
    aggregated = [features, scattered_mean(message, receivers, nodes)]
    if layer.has_virtual:
        step, pooled, states, places = _virtual(layer.virtual, features, positions, states, places, batch, graphs)
        moved = moved + step
        aggregated.append(pooled)
    if node_attributes is not None:
        aggregated.append(node_attributes)
    update = layer.node_mlp(torch.cat(aggregated, 1))
    return features + update if layer.residual else update, moved, states, places


def _virtual(
    part: nn.Module,
    features: Tensor,
    positions: Tensor,
    states: Tensor,
    places: Tensor,
    batch: Tensor,
    graphs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step (N, 3) and mean message (N, F) of the particles, new states and places of the virtual nodes."""
    nodes, channels = len(features), states.shape[2]
    to_virtual = places[batch] - positions.unsqueeze(2)  # (N, 3, C)
    distance = torch.linalg.vector_norm(to_virtual, dim=1, keepdim=True)
    centred = places - scattered_mean(positions, batch, graphs).unsqueeze(2)
    mixing = torch.bmm(centred.transpose(1, 2), centred)
    joined = torch.cat([features.unsqueeze(2).repeat(1, 1, channels), states[batch], distance, mixing[batch]], 1)
    virtual = part.gate(_joined(part.edge_mlp, joined.permute(0, 2, 1)))  # type: ignore[operator,arg-type]
    step = -(to_virtual * part.coord_mlp(virtual).permute(0, 2, 1)).mean(2)  # type: ignore[operator]
    pull = to_virtual * part.position_mlp(virtual).permute(0, 2, 1)  # type: ignore[operator]
    places = places + scattered_mean(pull.reshape(nodes, -1), batch, graphs).reshape(graphs, 3, channels)
    wide = virtual.permute(0, 2, 1).reshape(nodes, -1)
    pooled = scattered_mean(wide, batch, graphs).reshape(states.shape)
    update = part.node_mlp(torch.cat([states, pooled], 1).permute(0, 2, 1)).permute(0, 2, 1)  # type: ignore[operator]
    return step, virtual.mean(1), states + update if part.residual else update, places
