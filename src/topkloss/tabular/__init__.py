"""Linear models with the average top-k loss, solved to a certified accuracy, under scikit-learn's conventions."""
