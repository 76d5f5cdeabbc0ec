"""RFC 6902, as much as it takes to check a diff: what the patch makes of the old value has to be the new one."""

import copy


def _tokens(pointer):
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _step(value, token):
    return value[int(token)] if isinstance(value, list) else value[token]


def _find(value, pointer):
    for token in _tokens(pointer):
        value = _step(value, token)
    return value


def _remove(document, pointer):
    *parents, last = _tokens(pointer)
    for token in parents:
        document = _step(document, token)
    return document.pop(int(last) if isinstance(document, list) else last)


def _add(document, pointer, value):
    tokens = _tokens(pointer)
    if not tokens:
        return value
    parent = document
    for token in tokens[:-1]:
        parent = _step(parent, token)
    if not isinstance(parent, list):
        parent[tokens[-1]] = value
    elif tokens[-1] == "-":
        parent.append(value)
    else:
        parent.insert(int(tokens[-1]), value)
    return document


def apply(document, patch):
    """The patched copy of `document`. Raises LookupError, ValueError or TypeError when the patch does not fit."""
    document = copy.deepcopy(document)
    for operation in patch:
        kind, path = operation["op"], operation["path"]
        if kind == "test":
            if _find(document, path) != operation["value"]:
                raise ValueError(f"{path} is not {operation['value']!r}")
            continue
        if kind in ("add", "replace"):
            value = copy.deepcopy(operation["value"])
        elif kind == "copy":
            value = copy.deepcopy(_find(document, operation["from"]))
        elif kind == "move":
            value = _remove(document, operation["from"])
        if kind in ("remove", "replace") and path:
            _remove(document, path)
        if kind != "remove":
            document = _add(document, path, value)
    return document
