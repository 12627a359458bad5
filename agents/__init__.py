"""The learner and the strategies it is compared with; it may be left out of a deployment."""
