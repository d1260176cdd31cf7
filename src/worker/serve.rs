use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tracing::warn;

use super::contract;
use crate::progress::Progress;

/// Answers `GET /progress` until the process ends.
pub(super) async fn serve(listener: TcpListener, run_id: String, nonce: String, progress: Arc<Progress>) {
    let answer = move || {
        let now = progress.snapshot();
        let report = contract::Progress {
            run_id: run_id.clone(),
            nonce: nonce.clone(),
            stage: now.stage,
            bytes_done: now.bytes_done,
            bytes_total: now.bytes_total,
            blobs_done: now.blobs_done,
            blobs_total: now.blobs_total,
            plan: now.plan,
            last_error: now
                .last_error
                .map(|error| contract::cut(&error, contract::FAILURE_MESSAGE_LIMIT).to_owned()),
        };
        std::future::ready(Json(report))
    };
    if let Err(error) = axum::serve(listener, Router::new().route("/progress", get(answer))).await {
        warn!("progress is not reported any more: {error}");
    }
}
