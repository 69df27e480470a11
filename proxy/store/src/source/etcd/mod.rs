//! The etcd of a kube-apiserver.
use crate::stream::Sink;
use crate::{EtcdEndpoint, SourceError, SourceOptions};

#[derive(Debug)]
pub(crate) struct Source {
    endpoints: Vec<EtcdEndpoint>,
}

impl Source {
    pub(crate) fn new(
        endpoints: Vec<EtcdEndpoint>,
        _options: &SourceOptions,
    ) -> Result<Self, SourceError> {
        Ok(Self { endpoints })
    }

    pub(crate) async fn run(self, sink: Sink) {
        sink.disconnected(&format!("{:?}", self.endpoints));
        sink.closed().await;
    }
}
