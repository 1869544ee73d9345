//! Why evaluation on a batch stops.

use storage::block::BlockError;

use crate::{engine::QueryError, traceql::ExecutionError};

/// Why a query cannot be evaluated on a batch.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The query fails on some span, and therefore as a whole.
    #[error(transparent)]
    Execution(#[from] ExecutionError),
    /// The batch's block cannot be read.
    #[error(transparent)]
    Block(Box<BlockError>),
}

impl From<BlockError> for ExecError {
    fn from(error: BlockError) -> Self {
        Self::Block(Box::new(error))
    }
}

impl From<ExecError> for QueryError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Execution(error) => Self::Execution(error),
            ExecError::Block(error) => Self::Block(error),
        }
    }
}
