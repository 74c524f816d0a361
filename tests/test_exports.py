from __future__ import annotations

import inspect

import workspace_adapter


def test_the_public_names_are_sorted_and_exist() -> None:
    names = workspace_adapter.__all__
    assert names == sorted(names)
    assert all(hasattr(workspace_adapter, name) for name in names)


def test_everything_imported_is_public() -> None:
    imported = {
        name
        for name, value in vars(workspace_adapter).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert imported <= set(workspace_adapter.__all__)


def test_every_public_class_and_function_says_what_it_means() -> None:
    for name in workspace_adapter.__all__:
        value = getattr(workspace_adapter, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
