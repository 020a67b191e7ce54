"""What people write today: evaluate, update_bn, evaluate. It knows nothing of adaptkit.

`python -m benchmarks.users_script CHECKPOINT FOLDER SAMPLES OUT` prints the accuracies as JSON.
"""

import json
import sys

import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Subset
from torchvision import models, transforms
from torchvision.datasets import ImageFolder


def accuracy(model: nn.Module, loader: "DataLoader[object]") -> float:
    """Return the share of right predictions."""
    right = count = 0
    model.eval()
    with torch.no_grad():
        for images, labels in loader:
            right += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def main(checkpoint: str, folder: str, samples: str, out: str) -> None:
    """Adapt a ResNet-18 to a folder of class folders."""
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = ImageFolder(folder, transform)
    model = models.resnet18(num_classes=len(data.classes))
    model.load_state_dict(torch.load(checkpoint))
    loader = DataLoader(data, batch_size=64, num_workers=2)
    before = accuracy(model, loader)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data), generator=generator)[: int(samples)].tolist()
    update_bn(DataLoader(Subset(data, chosen), batch_size=64, num_workers=2), model)
    after = accuracy(model, loader)
    torch.save(model.state_dict(), out)
    print(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    main(*sys.argv[1:])
