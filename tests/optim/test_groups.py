"""Parameter groups, clipping and the teacher, against the rules written out one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eosin.models import EncoderConfig, ProjectionHead, ViT
from eosin.optim import clip_gradients, forget_last_layer, parameter_groups, set_step_values, update_teacher

CONFIG = EncoderConfig(width=12, depth=3, heads=2, patch=4, grid=2, registers=2, layer_scale=1e-5)


def test_every_parameter_has_its_own_rule() -> None:
    encoder, head = ViT(CONFIG), ProjectionHead(12, 8, hidden=16, bottleneck=4)
    groups = parameter_groups(encoder, [head], depth=3, layer_decay=0.5, patch_embed_factor=0.2)
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    set_step_values(optimizer, {"encoder_lr": 1.0, "lr": 0.5, "last_layer_lr": 0.25, "weight_decay": 0.1})
    seen = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    expected = {
        "patch_embed.proj.weight": (0.5**4 * 0.2, 0.1),
        "patch_embed.proj.bias": (0.5**4 * 0.2, 0.0),
        "cls_token": (0.5**4, 0.1),
        "pos_embed": (0.5**4, 0.1),
        "register_tokens": (0.5**4, 0.1),
        "mask_token": (0.5**4, 0.1),
        "blocks.0.attn.qkv.weight": (0.5**3, 0.1),
        "blocks.2.mlp.fc1.bias": (0.5, 0.0),
        "blocks.1.ls1.gamma": (0.5**2, 0.0),
        "blocks.1.norm1.weight": (0.5**2, 0.0),
        "norm.weight": (1.0, 0.0),
    }
    named = dict(encoder.named_parameters())
    for name, (lr, wd) in expected.items():
        assert seen[id(named[name])] == pytest.approx((lr, wd)), name
    for name, parameter in head.named_parameters():
        lr = 0.25 if "last_layer" in name else 0.5
        assert seen[id(parameter)] == pytest.approx((lr, 0.0 if name.endswith("bias") else 0.1)), name
    count = len(list(encoder.parameters())) + len(list(head.parameters()))
    assert len(seen) == count == sum(len(group["params"]) for group in groups)


@pytest.mark.parametrize("by", ["module", "tensor"])
def test_clipping_against_torch(by: str) -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(5, 7), nn.Linear(7, 3)]
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter) * 3
    twins = [[p.grad.clone().requires_grad_() for p in module.parameters()] for module in modules]
    for twin in twins:
        for gradient in twin:
            gradient.grad = gradient.detach().clone()
    total = torch.cat([p.grad.flatten() for m in modules for p in m.parameters()]).norm()
    assert torch.allclose(clip_gradients(modules, 1.5, by), total)
    for twin in twins:
        for part in [twin] if by == "module" else [[gradient] for gradient in twin]:
            nn.utils.clip_grad_norm_(part, 1.5)
    for module, twin in zip(modules, twins, strict=True):
        for parameter, gradient in zip(module.parameters(), twin, strict=True):
            assert torch.allclose(parameter.grad, gradient.grad, atol=1e-6)


def test_teacher_is_a_moving_average() -> None:
    student, teacher = ViT(CONFIG), ViT(CONFIG)
    expected = [
        0.9 * t.detach() + 0.1 * s.detach() for t, s in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    update_teacher(teacher, student, 0.9)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        assert torch.allclose(parameter, value, atol=1e-7)


def test_a_last_layer_without_gradient_is_as_if_its_steps_had_not_been() -> None:
    torch.manual_seed(0)
    frozen, twin = (ProjectionHead(12, 8, hidden=16, bottleneck=4, train_gain=False) for _ in range(2))
    twin.load_state_dict(frozen.state_dict())
    x, values = torch.randn(5, 12), {"encoder_lr": 1e-2, "lr": 1e-2, "weight_decay": 0.1}
    optimizers = [torch.optim.AdamW(parameter_groups(nn.Module(), [head], depth=1), lr=1.0) for head in (frozen, twin)]
    for step in range(5):
        still = step < 2
        for head, optimizer in zip((frozen, twin), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            head(x).logits().square().sum().backward()
            set_step_values(optimizer, {**values, "last_layer_lr": 0.0 if still and head is frozen else 1e-2})
            if still and head is twin:  # DINO v1: the gradient is taken away
                head.last_layer.weight_v.grad = None
            optimizer.step()
            if still and head is frozen:
                forget_last_layer(optimizer)
    for ours, theirs in zip(frozen.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
