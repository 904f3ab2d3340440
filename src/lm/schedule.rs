//! The learning rate over the steps.
