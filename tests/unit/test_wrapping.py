"""Hooks wrap once, call the original, and keep a method's kind."""

import pytest

from layerskip_vllm.compat.wrapping import wrap


@pytest.fixture
def host():
    class Host:
        def method(self, value):
            """Doc."""
            return value

        @staticmethod
        def static(value):
            return value

    return Host


def add_one(original, *args):
    return original(*args) + 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_hook_is_installed_once_however_often_it_is_asked_for(host, times):
    for _ in range(times):
        wrap(host, "method", add_one)
        wrap(host, "static", add_one)
    assert host().method(1) == 2
    assert host.static(1) == host().static(1) == 2
    assert host.method.__doc__ == "Doc."


def test_registering_twice_leaves_the_same_hooks():
    from layerskip_vllm import plugin
    from layerskip_vllm.compat.hooks import HOOKS

    plugin.register()
    installed = [getattr(hook.host, hook.name) for hook in HOOKS]
    plugin.register()
    assert [getattr(hook.host, hook.name) for hook in HOOKS] == installed
