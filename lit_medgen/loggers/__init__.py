"""Loggers that a resumed run continues: in the run folder as CSV, TensorBoard or MLflow, and to Weights & Biases."""

from lit_medgen.loggers.csv_log import RunLogger
from lit_medgen.loggers.in_run_folder import LoggerInRunFolder
from lit_medgen.loggers.mlflow_run import MlflowRun
from lit_medgen.loggers.tensorboard_run import TensorBoardRun
from lit_medgen.loggers.wandb_run import WandbRun, public

__all__ = ["LoggerInRunFolder", "MlflowRun", "RunLogger", "TensorBoardRun", "WandbRun", "public"]
