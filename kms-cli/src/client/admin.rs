//! AdminService: a backup, piece by piece.

use bytes::Bytes;
use kms_proto::v1::BackupStoreRequest;
use kms_proto::v1::admin_service_client::AdminServiceClient;
use tonic::{Request, Streaming};

use super::{Client, ClientError};

/// The pieces of a backup.
#[derive(Debug)]
pub struct BackupPieces {
    stream: Streaming<kms_proto::v1::BackupStoreResponse>,
    client: Client,
}

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPiece {
    /// The next bytes of the age file.
    pub data: Bytes,
    /// Rows written so far.
    pub rows: u64,
    /// Rows there will be.
    pub total_rows: u64,
}

impl Client {
    /// Asks for a backup that is encrypted to a recipient. It is not asked for again when it fails.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn backup_store(&self, recipient: String) -> Result<BackupPieces, ClientError> {
        let request = BackupStoreRequest { recipient };
        let send = |request: Request<BackupStoreRequest>| async {
            // How long all of it takes, nobody knows: only until it begins is there a limit.
            let request = Request::new(request.into_inner());
            AdminServiceClient::new(self.channel()).backup_store(request).await
        };
        let stream = self.call(request, send).await?;
        Ok(BackupPieces { stream, client: self.clone() })
    }
}

impl BackupPieces {
    /// Returns the next piece; `None` when the server says that all is there.
    ///
    /// # Errors
    /// When the backup failed, and what was received is none; also when nothing comes for the context's timeout.
    pub async fn next(&mut self) -> Result<Option<BackupPiece>, ClientError> {
        let Client { server, timeout, .. } = &self.client;
        let next = tokio::time::timeout(*timeout, self.stream.message()).await;
        let next = next.map_err(|_| ClientError::Timeout(*timeout))?;
        let next = next.map_err(|status| ClientError::of(&status, server, *timeout))?;
        Ok(next.map(|piece| {
            let kms_proto::v1::BackupStoreResponse { data, rows, total_rows } = piece;
            BackupPiece { data, rows, total_rows }
        }))
    }
}
