//! The health service on the plugin socket, in every version that kubelets know.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, future, stream};
use netferry_proto::dra::{
    health::{
        NodeWatchResourcesRequest, NodeWatchResourcesResponse, dra_resource_health_server::DraResourceHealth,
    },
    health_v1::dra_resource_health_server::DraResourceHealth as V1,
    health_v1beta1::dra_resource_health_server::DraResourceHealth as V1Beta1,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{health::Health, switch::Active};

/// The kubelet forgets what it has not heard for 30 s (`pkg/kubelet/cm/dra/healthinfo.go`).
const REPEAT: Duration = Duration::from_secs(10);
/// One event changes many records: changes are gathered for this long.
const GATHER: Duration = Duration::from_millis(50);

type Reports = Pin<Box<dyn Stream<Item = Result<NodeWatchResourcesResponse, Status>> + Send>>;

/// Streams of reports, which end when the daemon stops: it would wait for them otherwise.
#[derive(Clone)]
pub(super) struct HealthService {
    active: watch::Receiver<Option<Active>>,
    stop: CancellationToken,
}

impl HealthService {
    pub(super) const fn new(active: watch::Receiver<Option<Active>>, stop: CancellationToken) -> Self {
        Self { active, stop }
    }

    /// The reports of the active instance: from the moment on at which this is the one.
    fn reports(&self) -> Reports {
        let mut active = self.active.clone();
        let health = async move {
            let active = active.wait_for(Option::is_some).await.ok()?;
            active.as_ref().map(|active| active.health.clone())
        };
        let reports = stream::once(health).filter_map(future::ready).flat_map(reports_of).map(Ok);
        Box::pin(reports.take_until(self.stop.clone().cancelled_owned()))
    }
}

/// A report now, one when it is another, and one from time to time.
fn reports_of(health: Health) -> impl Stream<Item = NodeWatchResourcesResponse> + Send {
    let mut news = health.news();
    news.mark_seen();
    let first = health.report();
    let later = stream::unfold((health, news, first.clone()), |(health, mut news, last)| async move {
        let repeat = time::sleep(REPEAT);
        tokio::pin!(repeat);
        loop {
            let due = tokio::select! {
                () = news.next() => false,
                () = &mut repeat => true,
            };
            if !due {
                time::sleep(GATHER).await;
            }
            news.mark_seen();
            let report = health.report();
            if due || is_other(&report, &last) {
                return Some((report.clone(), (health, news, report)));
            }
        }
    });
    stream::once(async { first }).chain(later)
}

/// Whether a report says something else than the time.
fn is_other(report: &NodeWatchResourcesResponse, last: &NodeWatchResourcesResponse) -> bool {
    let facts = |report: &NodeWatchResourcesResponse| {
        let one = |it: &netferry_proto::dra::health::DeviceHealth| {
            (it.device.clone(), it.health, it.message.clone())
        };
        report.devices.iter().map(one).collect::<Vec<_>>()
    };
    facts(report) != facts(last)
}

#[tonic::async_trait]
impl V1 for HealthService {
    type NodeWatchResourcesStream = Reports;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        Ok(Response::new(self.reports()))
    }
}

#[tonic::async_trait]
impl V1Beta1 for HealthService {
    type NodeWatchResourcesStream = Reports;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        Ok(Response::new(self.reports()))
    }
}

#[tonic::async_trait]
impl DraResourceHealth for HealthService {
    type NodeWatchResourcesStream = Reports;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        Ok(Response::new(self.reports()))
    }
}
