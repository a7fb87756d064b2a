"""Linear models with the average top-k loss, solved to a certified accuracy, under scikit-learn's conventions."""

from topkloss.tabular.cv import AverageTopKClassifierCV, AverageTopKRegressorCV
from topkloss.tabular.estimators import AverageTopKClassifier, AverageTopKRegressor

__all__ = ["AverageTopKClassifier", "AverageTopKClassifierCV", "AverageTopKRegressor", "AverageTopKRegressorCV"]
