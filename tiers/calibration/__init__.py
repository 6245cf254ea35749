"""Labels to thresholds that keep a promise. Arrays in, arrays out; see docs/guarantees.md."""

from tiers.calibration.audits import Audit, audit_interval, drift
from tiers.calibration.calibrator import Calibrator, calibrate
from tiers.calibration.guarantee import Guarantee, Kind, RecallEvidence, Result, Status, Thresholds
from tiers.calibration.moved import bound_of_moved
from tiers.calibration.plan import Plan, plan_calibration
from tiers.calibration.reliability import (
    Bin,
    brier,
    cohen_kappa,
    cross_fitted,
    expected_calibration_error,
    reliability_table,
)
from tiers.calibration.worth import TierWorth, expected_cost, worth_of_tiers

__all__ = [
    "Audit",
    "Bin",
    "Calibrator",
    "Guarantee",
    "Kind",
    "Plan",
    "RecallEvidence",
    "Result",
    "Status",
    "Thresholds",
    "TierWorth",
    "audit_interval",
    "bound_of_moved",
    "brier",
    "calibrate",
    "cohen_kappa",
    "cross_fitted",
    "drift",
    "expected_calibration_error",
    "expected_cost",
    "plan_calibration",
    "reliability_table",
    "worth_of_tiers",
]
