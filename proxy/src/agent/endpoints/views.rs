//! What others ask of the pods of this node.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Endpoints, Held, How, LocalPods, Pod, Record, Work, pod_name};
use crate::control::EndpointRef;
use crate::view::EndpointNote;

impl Endpoints {
    /// What was done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Writes that found the map of pods full, ever.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether a pod is served, after [`Endpoints::sync`]; else why not.
    ///
    /// # Errors
    ///
    /// The reason, for the plugin to pass on.
    pub fn check(&self, key: &EndpointRef) -> Result<(), String> {
        if !self.on {
            return Ok(());
        }
        match self.pods.get(key) {
            Some(pod) if pod.how == How::Failed => {
                let why = pod.problems.first().map_or("", |(_, message)| message.as_str());
                Err(format!("pod {} cannot be served: {why}", pod.record.label()))
            }
            Some(_) => Ok(()),
            None => Err(format!(
                "no record and interface of container {} ({}) under {}",
                key.container_id,
                key.interface,
                self.directory.display()
            )),
        }
    }

    /// The pods that ask for ports of the node.
    pub(in crate::agent) fn with_ports(&self) -> impl Iterator<Item = &Record> {
        self.pods.values().map(|pod| &pod.record).filter(|record| !record.host_ports.is_empty())
    }

    /// The pods that have their programs, by name. Of several attachments of one, the youngest tells
    /// its addresses; a pod that is going has none.
    pub(in crate::agent) fn local(&self) -> LocalPods {
        let mut served: Vec<&Pod> = self.pods.values().filter(|pod| pod.is_served()).collect();
        served.sort_by_key(|pod| (pod.record.created, pod.ifindex));
        let mut pods = LocalPods::new();
        for pod in served {
            let local = pods.entry(pod_name(&pod.record)).or_default();
            if local.ifindex != 0 {
                local.others.insert(local.ifindex);
            }
            local.ifindex = pod.ifindex;
            local.addrs.clone_from(&pod.record.addresses);
        }
        for (ifindex, departing) in &self.departing {
            let local = pods.entry(departing.name.clone()).or_default();
            if local.ifindex == 0 {
                local.ifindex = *ifindex;
            } else if local.ifindex != *ifindex {
                local.others.insert(*ifindex);
            }
        }
        pods
    }

    /// The pod at an interface.
    pub(in crate::agent) fn at(&self, ifindex: u32) -> Option<EndpointRef> {
        self.pods.iter().find(|(_, pod)| pod.ifindex == ifindex).map(|(key, _)| key.clone())
    }

    /// The pod whose record a file is.
    pub(in crate::agent) fn key_of(&self, file: &str) -> Option<EndpointRef> {
        match self.files.get(file)? {
            Held::Record(_, record) => Some(record.key.clone()),
            Held::Bad(_) => None,
        }
    }

    /// The record of a pod that is there.
    pub(in crate::agent) fn record(&self, key: &EndpointRef) -> Option<&Record> {
        self.pods.get(key).map(|pod| &pod.record)
    }

    /// What is known of the pod with that address.
    pub fn note(&self, address: IpAddr) -> EndpointNote {
        let mut pods = self.pods.values().filter(|pod| pod.how != How::Off);
        pods.find(|pod| pod.record.addresses.contains(&address))
            .map(|pod| EndpointNote {
                pod: pod.record.label(),
                interface: pod.record.host_interface.clone(),
                attached: match pod.shaped {
                    true => format!("{}, no fast path", pod.how),
                    false => pod.how.to_string(),
                },
                host_ports: pod.record.host_ports.iter().map(ToString::to_string).collect(),
            })
            .unwrap_or_default()
    }

    /// Pods with addresses outside these ranges, which other nodes have no routes to: the node's pod
    /// CIDRs were changed while the pods ran.
    pub(in crate::agent) fn outside<'a>(
        &'a self,
        cidrs: &'a [IpNet],
    ) -> impl Iterator<Item = (String, IpAddr)> + 'a {
        let pods = self.pods.values().filter(|pod| pod.how != How::Off).map(|pod| &pod.record);
        pods.flat_map(|record| record.addresses.iter().map(|addr| (record.label(), *addr)))
            .filter(|(_, addr)| !cidrs.iter().any(|cidr| cidr.contains(addr)))
    }

    /// Pods whose packets may be larger than so many bytes, with the MTU that they have.
    pub(in crate::agent) fn with_larger_mtu(
        &self,
        mtu: u32,
    ) -> impl Iterator<Item = (String, u32)> + '_ {
        let pods = self.pods.values().filter(|pod| pod.how != How::Off).map(|pod| &pod.record);
        pods.filter(move |record| record.mtu > mtu).map(|record| (record.label(), record.mtu))
    }

    /// How many pods have their programs.
    pub fn served(&self) -> usize {
        self.pods.values().filter(|pod| pod.is_served()).count()
    }

    /// How many addresses the kernel's map holds.
    pub fn addresses(&self) -> usize {
        self.kernel.len()
    }

    /// What is wrong, subject and message.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        let files = self.files.iter().filter_map(|(file, held)| match held {
            Held::Bad(error) => Some((error.as_str(), self.verdict(file))),
            Held::Record(..) => None,
        });
        let pods = self.pods.values().flat_map(|pod| &pod.problems).chain(&self.trouble);
        files.chain(pods.map(|(subject, message)| (subject.as_str(), message.as_str())))
    }
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off | Self::Failed => f.write_str("none"),
            Self::By(hook) => hook.fmt(f),
        }
    }
}
