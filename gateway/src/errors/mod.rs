//! The one place that maps errors to gRPC statuses, on which a client can act without reading text. Nothing here
//! logs or counts: [`broker_errors`](crate::broker_errors) and [`Spans`](crate::spans::Spans) do, where the call is answered.

mod credentials;
mod dead_letters;
mod deadlines;
mod fault;
mod invalid;
mod orders;
mod quota;
mod reason;
mod rejection;
mod status;
mod stock;

pub(crate) use credentials::{
    credential_ambiguous, credential_expired, credential_invalid, credential_missing, credential_unchecked,
    role_missing,
};
pub(crate) use dead_letters::{
    UNDECODABLE, already_redriven, letter_not_found, letter_unknown, put, undecodable,
};
pub(crate) use deadlines::{
    caller_timed_out, redrive_timed_out, request_timed_out, stream_timed_out, timed_out,
};
pub(crate) use fault::Fault;
pub(crate) use invalid::{VIOLATIONS_MAX, invalid};
pub(crate) use orders::{
    append, beyond, draining, events_lost, log_replaced, not_cancellable, not_durable, not_found, read,
    request_id_reused,
};
pub(crate) use quota::{
    metadata_too_large, overloaded, rate_limited, request_too_large, too_many_calls, too_many_streams,
};
pub(crate) use reason::Reason;
pub(crate) use rejection::Rejection;
pub(crate) use status::{internal, malformed};
pub(crate) use stock::{sku_not_found, stock, stock_missing, stock_unknown};
