//! Errors of the database.

use rusqlite::ErrorCode;

/// An error of the database. The text is appended to its path.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It must not be touched; the operator has to act.
    #[error("{0}")]
    Refused(String),
    /// A file operation failed.
    #[error("{0}")]
    File(String),
    /// It is damaged.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// A statement failed.
    #[error("{}", explain(.0))]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged(error.to_string())
            }
            _ => StoreError::Sqlite(error),
        }
    }
}

fn explain(error: &rusqlite::Error) -> String {
    let hint = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "; make room on its file system",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "; another process keeps a transaction open in it"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "; check its rights and those of its directory"
        }
        _ => "",
    };
    format!("{error}{hint}")
}
