use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use prost_types::Timestamp;
use proto::orders::v1::StepDeferred;
use proto::steps::v1::step_service_server::{StepService, StepServiceServer};
use proto::steps::v1::{
    ActResponse, AlreadyCompensated, CompensateResponse, Compensated, Completed, Deferred, NothingDone,
    Rejected,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// Gives the answers of a test in turn; after them none.
#[derive(Clone, Default)]
struct Script {
    acts: Arc<Mutex<VecDeque<Result<ActResponse, Status>>>>,
    compensations: Arc<Mutex<VecDeque<CompensateResponse>>>,
    seen: Arc<Mutex<Vec<ActRequest>>>,
}

#[tonic::async_trait]
impl StepService for Script {
    async fn act(&self, request: Request<ActRequest>) -> Result<Response<ActResponse>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"));
        assert!(request.metadata().contains_key("traceparent"));
        self.seen.lock().unwrap().push(request.into_inner());
        let answer = self.acts.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn compensate(
        &self,
        _: Request<CompensateRequest>,
    ) -> Result<Response<CompensateResponse>, Status> {
        let answer = self.compensations.lock().unwrap().pop_front();
        answer.map(Response::new).ok_or_else(|| Status::internal("nothing left"))
    }
}

impl Script {
    async fn step(&self, timeout: Duration) -> RemoteStep {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::builder().add_service(StepServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let config = RemoteStepConfig {
            name: "fraud",
            url: Endpoint::from_shared(format!("http://{addr}")).unwrap(),
            timeout,
            ca_file: None,
            cert_file: None,
            key_file: None,
            token_file: None,
        };
        RemoteStep::new(&config, LONG).unwrap()
    }
}

async fn acting(answers: Vec<Result<ActResponse, Status>>) -> (RemoteStep, Script) {
    let script = Script { acts: Arc::new(Mutex::new(answers.into())), ..Script::default() };
    (script.step(LONG).await, script)
}

fn order() -> Order {
    let create_time = Some(Timestamp { seconds: 1_800_000_000, nanos: 5 });
    Order { order_id: "customer-order".to_owned(), create_time, ..Order::default() }
}

fn act(outcome: act_response::Outcome) -> Result<ActResponse, Status> {
    Ok(ActResponse { outcome: Some(outcome) })
}

fn completed(attributes: &[(&str, String)]) -> Result<ActResponse, Status> {
    let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    act(act_response::Outcome::Completed(Completed { attributes }))
}

fn deferred(until: Option<SystemTime>, reason: &str) -> Result<ActResponse, Status> {
    let until = until.map(Into::into);
    act(act_response::Outcome::Deferred(Deferred {
        until,
        reason: reason.to_owned(),
        message: String::new(),
    }))
}

fn rejected(reason: &str, message: &str) -> Result<ActResponse, Status> {
    act(act_response::Outcome::Rejected(Rejected { reason: reason.to_owned(), message: message.to_owned() }))
}

#[tokio::test]
async fn the_service_learns_the_order_the_key_and_the_attempt() {
    let answers =
        vec![Err(Status::unavailable("away")), completed(&[("score", "3".to_owned())]), completed(&[])];
    let (step, script) = acting(answers).await;
    let attributes = BTreeMap::from([("score".to_owned(), "3".to_owned())]);
    assert_eq!(step.act(&order(), 2).await.unwrap(), Detail::Completed(StepCompleted { attributes }));
    step.act(&Order { create_time: Some(Timestamp::default()), ..order() }, 1).await.unwrap();
    let seen = script.seen.lock().unwrap();
    let expected = ActRequest {
        step: "fraud".to_owned(),
        idempotency_key: "customer-order-fraud-1800000000000000005".to_owned(),
        order: Some(order()),
        attempt: 2,
    };
    assert_eq!(seen[..2], [expected.clone(), expected], "a retry is the same call");
    assert_ne!(seen[2].idempotency_key, seen[0].idempotency_key, "a later order of the same id");
}

#[tokio::test]
async fn a_rejection_rejects_the_order() {
    let (step, _) = acting(vec![rejected("SUSPECTED_FRAUD", "\u{1b}[2Jno")]).await;
    let Err(StepError::Rejected { reason, message }) = step.act(&order(), 1).await else { panic!() };
    assert_eq!((&*reason, &*message), ("SUSPECTED_FRAUD", "\u{fffd}[2Jno"));
}

#[tokio::test]
async fn a_deferral_lasts_at_least_a_second() {
    let now = SystemTime::now();
    let later = now + Duration::from_secs(3_600);
    let (step, _) = acting(vec![deferred(Some(later), "WAITS"), deferred(Some(now - LONG), "WAITS")]).await;
    let expected =
        StepDeferred { until: Some(later.into()), reason: "WAITS".to_owned(), ..Default::default() };
    assert_eq!(step.act(&order(), 1).await.unwrap(), Detail::Deferred(expected));
    let Detail::Deferred(soon) = step.act(&order(), 1).await.unwrap() else { panic!() };
    assert!(SystemTime::try_from(soon.until.unwrap()).unwrap() >= now + Duration::from_secs(1));
}

#[tokio::test]
async fn unusable_answers_use_up_an_attempt() {
    let year = Duration::from_secs(367 * 24 * 3_600);
    let many: Vec<_> = (0..21).map(|n| (["a", "b"][n % 2].repeat(n + 1), "1".to_owned())).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let large: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"]
        .map(|key| (key, "\u{20ac}".repeat(500)))
        .to_vec();
    for nonsense in [
        Ok(ActResponse { outcome: None }),
        act(act_response::Outcome::AlreadyCompensated(AlreadyCompensated {})),
        completed(&many),
        completed(&large),
        completed(&[("Score", "3".to_owned())]),
        completed(&[("", "3".to_owned())]),
        completed(&[("a.b", "3".to_owned())]),
        completed(&[("score", "x".repeat(501))]),
        completed(&[("score", "\u{1b}".to_owned())]),
        completed(&[("score", "x".repeat(5 * 1024 * 1024))]),
        completed(&[("tracking_url", "javascript:alert(1)".to_owned())]),
        rejected("", "no"),
        rejected("no", "no"),
        rejected("CLIENT_REQUEST", "no"),
        rejected("RETRIES_EXHAUSTED", "no"),
        deferred(None, "WAITS"),
        deferred(Some(SystemTime::now() + year), "WAITS"),
        deferred(Some(SystemTime::now()), "waits"),
        Err(Status::internal("panic")),
        Err(Status::new(tonic::Code::from_i32(99), "what")),
    ] {
        let (step, script) = acting(vec![nonsense.clone()]).await;
        let error = step.act(&order(), 1).await.unwrap_err();
        assert!(matches!(error, StepError::Unexpected(_)), "{nonsense:?} is {error}");
        assert_eq!(script.seen.lock().unwrap().len(), 1, "an unusable answer is not asked for again");
    }
}

#[tokio::test]
async fn a_service_without_an_answer_is_unavailable() {
    let hanging = Script::default();
    let step = hanging.step(Duration::from_millis(20)).await;
    let error = step.act(&order(), 1).await.unwrap_err();
    assert!(matches!(error, StepError::Unavailable(_)), "{error}");
    for refusal in [Status::unauthenticated(""), Status::permission_denied(""), Status::unimplemented("")] {
        let (step, script) = acting(vec![Err(refusal)]).await;
        let error = step.act(&order(), 1).await.unwrap_err();
        assert!(matches!(error, StepError::Unavailable(_)), "{error}");
        assert_eq!(script.seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn nothing_done_is_an_error_for_a_completed_step() {
    let nothing =
        CompensateResponse { outcome: Some(compensate_response::Outcome::NothingDone(NothingDone {})) };
    let compensated =
        CompensateResponse { outcome: Some(compensate_response::Outcome::Compensated(Compensated {})) };
    let answers = [nothing, nothing, compensated, CompensateResponse { outcome: None }];
    let script = Script { compensations: Arc::new(Mutex::new(answers.into())), ..Script::default() };
    let step = script.step(LONG).await;
    let done = Detail::Compensated(StepCompensated {});
    assert_eq!(step.compensate(&order(), false, 1).await.unwrap(), done);
    let error = step.compensate(&order(), true, 1).await.unwrap_err();
    assert!(matches!(error, StepError::Unexpected(_)), "it forgot its key: {error}");
    assert_eq!(step.compensate(&order(), true, 1).await.unwrap(), done);
    step.compensate(&order(), true, 1).await.unwrap_err();
}
