"""Every error that egnn_md raises on purpose. Each message names the value, the place and the remedy."""


class EgnnMdError(Exception):
    """Base class: ``except EgnnMdError`` catches what the package raises on purpose, and nothing else."""


class InputError(EgnnMdError, ValueError):
    """A structure, graph or argument that cannot be used (NaN, coincident atoms, flat cell, wrong shape)."""


class UnknownElementError(InputError):
    """A model was given an element that it was not trained on."""


class ModelFileError(EgnnMdError):
    """A model file is missing, truncated, foreign, too new, or not what its header says."""


class UnsafeFileError(ModelFileError):
    """A file asks to run code when it is read (a pickle with foreign globals)."""


class ConfigError(EgnnMdError, ValueError):
    """A configuration has an unknown key or an impossible value; the message names the key."""


class MissingDependencyError(EgnnMdError, ImportError):
    """An optional package is needed; the message gives the command that installs it."""


class ExportError(EgnnMdError):
    """An exported artefact disagrees with its eager model, or does not fit the system it is added to."""


class LabellingError(EgnnMdError):
    """A reference calculation failed, or a label file does not belong to this request."""


class TrainingError(EgnnMdError):
    """Training broke down (a loss that is not finite); the last checkpoint is from before."""


class OutputError(EgnnMdError):
    """Results could not be written (a full disk, a quota, no permission); what was written is kept."""


class SimulationError(EgnnMdError):
    """A run stopped because its physics broke (NaN force, runaway atom); all earlier frames are on disk."""


class DeviceError(EgnnMdError):
    """Devices or the processes on them were lost, or ran out of memory; what was written is kept and resumes."""
