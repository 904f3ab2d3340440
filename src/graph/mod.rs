//! The DAG of a pipeline's nodes, their keys and their drawing.
