"""What Ray's own autoscaler would do with a cluster's file, without a cluster."""

from __future__ import annotations

from collections import Counter
from typing import Any


def launched(
    config: dict[str, Any], *demands: tuple[int, dict[str, float], dict[str, str]]
) -> dict[str, int]:
    """The nodes by type that Ray's autoscaler starts for so many workers; "no place": for so many none."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    equal = LabelSelectorOperator.LABEL_OPERATOR_IN
    requests = [
        ResourceRequestUtil.make(
            amounts, label_selectors=[[(key, equal, [value]) for key, value in labels.items()]]
        )
        for count, amounts, labels in demands
        for _ in range(count)
    ]
    read = AutoscalingConfig(config, skip_content_hash=True)
    asked = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=read.get_node_type_configs(),
        max_num_nodes=read.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(requests),
    )
    reply = ResourceDemandScheduler().schedule(asked)
    found: Counter[str] = Counter()
    for launch in reply.to_launch:
        found[launch.instance_type] += launch.count
    without_place = len(reply.infeasible_resource_requests)
    return {**found, **({"no place": without_place} if without_place else {})}
