# SPDX-License-Identifier: Apache-2.0
"""Which object a label in the masks is: from detections, a parameter, or the object library."""

import cv2
import numpy as np


def labels_in(masks):
    """The labels in a label image, ascending, without 0."""
    if masks.dtype in (np.uint8, np.uint16):
        values = 256 if masks.dtype == np.uint8 else 65536
        labels = np.flatnonzero(cv2.calcHist([masks], [0], None, [values], [0, values]))
    elif masks.size and int(masks.max()) > 1_000_000:  # a table of counts would grow too large
        labels = np.unique(masks)
    else:
        labels = np.flatnonzero(np.bincount(masks.ravel().clip(0)))
    return [int(label) for label in labels if label > 0]


def label_of(text):
    """The label that a detection's id stands for, or None."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= 10 else None


def names_from_detections(detections, library, report):
    """{label: object name} of a Detection2DArray; `report(label, text)` gets what is wrong."""
    names = {}
    for detection in detections.detections:
        label = label_of(detection.id)
        if label is None:
            report(
                None,
                f"a detection has the id '{detection.id[:40]}'; it must be the object's label in "
                "the masks, a whole number",
            )
            continue
        if not detection.results:
            report(label, "its detection has no results, so it names no object")
            continue
        best = max(detection.results, key=lambda result: result.hypothesis.score)
        class_name = best.hypothesis.class_id
        model = library.resolve(class_name)
        if model is None:
            report(
                label,
                f"its class '{class_name}' is not in the object library "
                f"({', '.join(library)}); add it there, or as an alias of an object",
            )
            names[label] = None
        else:
            names[label] = model.name
    return names


def name_labels(labels, detections, label_names, library, report, has_encoder=False):
    """{label: object name} for those labels that are known; `report` gets the others.

    detections: a Detection2DArray or None. label_names: {label: class}, from the parameter.
    has_encoder: labels that nothing names are {label: None}, for the encoder to say.
    """
    detected = names_from_detections(detections, library, report) if detections is not None else {}
    # With one object in the library there is nothing to tell apart.
    single = len(library) == 1 and detections is None and not label_names
    only = next(iter(library)) if single else None
    names = {}
    for label in labels:
        if label in detected:
            name = detected[label]  # None is an unknown class and reported already
        elif label in label_names:
            model = library.resolve(label_names[label])
            name = model.name if model else None
            if model is None:
                report(
                    label,
                    f"label_names calls it '{label_names[label]}', which is not in the object "
                    f"library ({', '.join(library)})",
                )
        else:
            model = library.by_label(label)
            name = model.name if model else only
            if name is None and has_encoder:
                names[label] = None
            elif name is None:
                report(label, _nameless(detections))
        if name is not None:
            names[label] = name
    return names


def _nameless(detections):
    where = "the detections do not list it" if detections is not None else "no detections came"
    return (
        f"it has no name: {where}, and neither the parameter label_names nor a 'label' in the "
        "object library names it"
    )


def parse_label_names(items):
    """The parameter label_names, ["1:mug"], as {1: "mug"}."""
    pairs = (item.split(":", 1) for item in items)
    return {int(label): name.strip() for label, name in pairs}
