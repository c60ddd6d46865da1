"""COCO 2017 as it is distributed (Lin et al., ECCV 2014): train2017/, val2017/ and annotations/instances_*.json."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from frepro.data import listing
from frepro.data.annotated import AnnotatedImage, read_image
from frepro.data.coco_files import (
    FOLDERS,
    annotation_file,
    described,
    mask_tools,
    object_faults,
    run_lengths,
    usable,
)
from frepro.errors import FreproError, printable

REVISION = {"COCO": 1}


class Coco(Dataset):
    """Annotated images of a split, in the order of their ids; there is no semantic map.

    Boxes are clipped to the image. An object whose box has no width or no height is left out, because nothing can be
    learned from it; ``frepro data check`` counts such boxes. The area of an object without one is that of its box.

    Args:
        root: Folder of the data set.
        split: "train" or "test".
        masks: Read the masks, which every object must then have.

    Attributes:
        classes: Names of the classes.
        category_ids: The file's number of each class: 1 to 90 with gaps for COCO's 80.

    Raises:
        FreproError: A file is missing or damaged, or refers to an undefined category or image.
    """

    semantic_classes = None

    def __init__(self, root: str | Path, split: str, masks: bool = True) -> None:
        self.folder = Path(root) / FOLDERS[split]
        self.file = annotation_file(root, split)
        self.mask_tools = mask_tools() if masks else None
        content = usable(self.file)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        self.images = sorted(content["images"], key=lambda image: image["id"])
        self.paths = [file.path for file in listing.on_disk(self.folder, (image["file_name"] for image in self.images))]
        self.objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        self.label = {category: label for label, category in enumerate(self.category_ids)}
        for item in content["annotations"]:
            if masks and not item.get("segmentation"):
                raise FreproError(
                    f"{self.file}: annotation {item['id']} has no mask: train RetinaNet, which learns boxes alone, or "
                    "add masks"
                )
            self.objects[item["image_id"]].append(item)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        entry = self.images[index]
        image = read_image(self.folder / self.paths[index], "RGB")
        width, height = image.size
        if (width, height) != (entry["width"], entry["height"]):
            raise FreproError(
                f"{self.folder / entry['file_name']} has {width} x {height} pixels, but its masks have "
                f"{entry['width']} x {entry['height']}: replace the file"
            )
        objects = self.objects[entry["id"]]
        for item in objects:
            for kind, said in object_faults(item):
                raise FreproError(f"{self.file}: {kind}: {described(item)}: {said}: run `frepro data check`")
        boxes = np.array([item["bbox"] for item in objects], dtype=np.float32).reshape(len(objects), 4)
        boxes[:, 2:] += boxes[:, :2]  # from x, y, width, height
        boxes = boxes.clip(0, [width, height, width, height])
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        objects = [objects[i] for i in kept]
        spans = boxes[kept, 2:] - boxes[kept, :2]
        areas = [item.get("area", span) for item, span in zip(objects, spans.prod(1).tolist(), strict=True)]
        return AnnotatedImage(
            image=image,
            boxes=torch.from_numpy(boxes[kept].astype(np.float32)),
            labels=torch.tensor([self.label[item["category_id"]] for item in objects], dtype=torch.int64),
            masks=self._masks(objects, height, width),
            areas=torch.from_numpy(np.array(areas, dtype=float).astype(np.float32)),
            crowd=torch.tensor([bool(item.get("iscrowd", 0)) for item in objects], dtype=torch.bool),
            semantic=None,
            image_id=entry["id"],
        )

    def _masks(self, objects: list[dict[str, Any]], height: int, width: int) -> torch.Tensor | None:
        if self.mask_tools is None:
            return None
        masks = np.zeros((len(objects), height, width), dtype=bool)
        for mask, item in zip(masks, objects, strict=True):
            mask[:] = self.decode(item, height, width, self.mask_tools)
        return torch.from_numpy(masks)

    def decode(self, item: dict[str, Any], height: int, width: int, tools: ModuleType) -> np.ndarray:
        """Return the mask of an annotation, (height, width) bool."""
        try:
            mask = tools.decode(run_lengths(item["segmentation"], height, width, tools))
        except ValueError as error:
            said = printable(error)
            raise FreproError(f"{self.file}: the mask of annotation {item['id']} is damaged: {said}") from error
        return mask.astype(bool)
