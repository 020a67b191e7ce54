"""Take a trained PyTorch model to a new domain without labels.

adaptkit re-estimates a model's normalisation statistics on unlabelled target data (AdaBN, Li et al.
2016, arXiv 1603.04779) and reports what that changed. Importing this package is cheap: torch is
imported when the first name that needs it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adaptkit import data as data
    from adaptkit.adaptation import adapt as adapt
    from adaptkit.checkpoint import Checkpoint as Checkpoint
    from adaptkit.checkpoint import load_checkpoint as load_checkpoint
    from adaptkit.checkpoint import save_checkpoint as save_checkpoint
    from adaptkit.data import ImageLoader as ImageLoader
    from adaptkit.data import image_folder as image_folder
    from adaptkit.dense import DenseEvaluation as DenseEvaluation
    from adaptkit.dense import evaluate_dense as evaluate_dense
    from adaptkit.errors import AdaptkitError as AdaptkitError
    from adaptkit.errors import CheckpointError as CheckpointError
    from adaptkit.errors import DataError as DataError
    from adaptkit.errors import DependencyError as DependencyError
    from adaptkit.errors import DeviceError as DeviceError
    from adaptkit.errors import EstimationError as EstimationError
    from adaptkit.errors import ModelError as ModelError
    from adaptkit.errors import OutputError as OutputError
    from adaptkit.estimation import Certificate as Certificate
    from adaptkit.estimation import DomainBank as DomainBank
    from adaptkit.estimation import OnlineAdapter as OnlineAdapter
    from adaptkit.estimation import Statistics as Statistics
    from adaptkit.estimation import certify as certify
    from adaptkit.estimation import estimate as estimate
    from adaptkit.evaluation import Evaluation as Evaluation
    from adaptkit.evaluation import evaluate as evaluate
    from adaptkit.guard import Calibration as Calibration
    from adaptkit.guard import calibrate as calibrate
    from adaptkit.moments import Moments as Moments
    from adaptkit.report import Report as Report
    from adaptkit.report import compare as compare
    from adaptkit.transform import Transform as Transform

_HOME = {
    "AdaptkitError": "errors",
    "Calibration": "guard",
    "Certificate": "estimation",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "DataError": "errors",
    "DependencyError": "errors",
    "DeviceError": "errors",
    "EstimationError": "errors",
    "DenseEvaluation": "dense",
    "DomainBank": "estimation",
    "Evaluation": "evaluation",
    "ImageLoader": "data",
    "ModelError": "errors",
    "Moments": "moments",
    "OnlineAdapter": "estimation",
    "OutputError": "errors",
    "Report": "report",
    "Statistics": "estimation",
    "Transform": "transform",
    "adapt": "adaptation",
    "calibrate": "guard",
    "certify": "estimation",
    "compare": "report",
    "estimate": "estimation",
    "evaluate": "evaluation",
    "evaluate_dense": "dense",
    "image_folder": "data",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "data":  # adaptkit.data.open, a name that does not do without its module
        return import_module("adaptkit.data")
    if name not in _HOME:
        raise AttributeError(f"module 'adaptkit' has no attribute {name!r}")
    value = getattr(import_module(f"adaptkit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
