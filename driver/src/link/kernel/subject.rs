//! A link that is spoken about: verbs that share one socket.

use std::{collections::BTreeMap, io, path::Path};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags},
};

use super::{
    conversation::Conversation,
    decode::{self, LinkFacts},
    encode, home, namespace, sysctl,
};
use crate::link::{Address, LinkError, LinkRef, MacAddr, Namespace, Route, Setup};

/// A link that is spoken about, for requests and for their errors.
pub(super) struct Subject {
    pub(super) conversation: Conversation,
    pub(super) namespace: Namespace,
    pub(super) link: String,
}

impl Subject {
    pub(super) fn error(&self, action: impl Into<String>, source: io::Error) -> LinkError {
        if source.raw_os_error() == Some(libc::ENODEV) {
            return LinkError::NotFound { link: self.link.clone(), namespace: self.namespace.clone() };
        }
        LinkError::Kernel {
            action: action.into(),
            link: self.link.clone(),
            namespace: self.namespace.clone(),
            source,
        }
    }

    pub(super) async fn facts(&self, link: &LinkRef) -> Result<LinkFacts, LinkError> {
        let message = match link {
            LinkRef::Index(index) => encode::link(*index, Vec::new()),
            LinkRef::Name(name) => encode::link(0, vec![LinkAttribute::IfName(name.clone())]),
        };
        let found = self.conversation.get(RouteNetlinkMessage::GetLink(message)).await;
        let found = found.map_err(|source| self.error("read the link", source))?;
        found
            .iter()
            .find_map(|object| match object {
                RouteNetlinkMessage::NewLink(message) => Some(decode::link(message)),
                _ => None,
            })
            .ok_or_else(|| LinkError::NotFound { link: self.link.clone(), namespace: self.namespace.clone() })
    }

    async fn change_link(
        &self,
        ifindex: u32,
        attribute: LinkAttribute,
        action: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        let message = encode::link(ifindex, vec![attribute]);
        let done = self.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await;
        done.map_err(|source| self.error(action(), source))
    }

    pub(super) async fn set_up(&self, ifindex: u32, up: bool) -> Result<(), LinkError> {
        let bit = LinkFlags::Up.bits();
        let message = encode::flags(ifindex, if up { bit } else { 0 }, bit);
        let done = self.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await;
        done.map_err(|source| self.error(if up { "set up" } else { "set down" }, source))
    }

    pub(super) async fn rename(&self, ifindex: u32, name: &str) -> Result<(), LinkError> {
        let renamed = self
            .change_link(ifindex, LinkAttribute::IfName(name.to_owned()), || format!("rename to {name:?}"));
        name_taken(renamed.await, name, &self.namespace)
    }

    pub(super) async fn set_mac(&self, ifindex: u32, mac: MacAddr) -> Result<(), LinkError> {
        let attribute = LinkAttribute::Address(mac.0.to_vec());
        self.change_link(ifindex, attribute, || format!("set the MAC to {mac}")).await
    }

    pub(super) async fn set_mtu(&self, ifindex: u32, mtu: u32) -> Result<(), LinkError> {
        let message = encode::link(ifindex, vec![LinkAttribute::Mtu(mtu)]);
        let Err(source) = self.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await else {
            return Ok(());
        };
        let action = match self.facts(&LinkRef::Index(ifindex)).await.map(|facts| facts.mtu_range) {
            Ok((lowest, 0)) => format!("set the MTU to {mtu} (the link takes {lowest} and more)"),
            Ok((lowest, highest)) => format!("set the MTU to {mtu} (the link takes {lowest} to {highest})"),
            Err(_) => format!("set the MTU to {mtu}"),
        };
        Err(self.error(action, source))
    }

    /// In this order: IPv6 has sysctls only where the MTU is large enough for it, and with IPv6 off no address is taken.
    pub(super) async fn configure(
        &self,
        host: Option<&Path>,
        ifindex: u32,
        setup: &Setup,
    ) -> Result<(), LinkError> {
        if let Some(mac) = setup.mac {
            self.set_mac(ifindex, mac).await?;
        }
        if let Some(mtu) = setup.mtu {
            self.set_mtu(ifindex, mtu).await?;
        }
        self.set_sysctls(host, ifindex, &setup.sysctls).await?;
        for address in &setup.addresses {
            self.add_address(ifindex, address).await?;
        }
        Ok(())
    }

    /// An address that is there already gets the flags and lifetime asked for.
    pub(super) async fn add_address(&self, ifindex: u32, address: &Address) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::NewAddress(encode::address(ifindex, address));
        let done = self.conversation.change(message, NLM_F_CREATE | NLM_F_REPLACE).await;
        done.map_err(|source| self.error(format!("add the address {}", address.address), source))
    }

    pub(super) async fn set_sysctls(
        &self,
        host: Option<&Path>,
        ifindex: u32,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        if sysctls.is_empty() {
            return Ok(());
        }
        let name = self.facts(&LinkRef::Index(ifindex)).await?.link.name;
        let sysctls = sysctls.clone();
        let written =
            namespace::within(&self.namespace, host, move || sysctl::write(&name, &sysctls)).await?;
        written.map_err(|(what, source)| self.error(format!("set the sysctl {what}"), source))
    }

    pub(super) async fn add_route(&self, ifindex: u32, route: &Route) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::NewRoute(encode::route(ifindex, route));
        match self.conversation.change(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                // Ours from an earlier run, or one through another link?
                let (routes, _) = home::routes(self, ifindex).await?;
                let same = |had: &Route| had.destination == route.destination && had.gateway == route.gateway;
                if routes.iter().any(same) {
                    return Ok(());
                }
                Err(self.error(add_route(route), source))
            }
            done => done.map_err(|source| self.error(add_route(route), source)),
        }
    }
}

/// What is done, for an error.
pub(super) fn add_route(route: &Route) -> String {
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    format!("add the route to {}{via} in table {}", route.destination, route.table)
}

/// The kernel says that a name exists in as many words as for anything else that does.
pub(super) fn name_taken<T>(
    result: Result<T, LinkError>,
    name: &str,
    namespace: &Namespace,
) -> Result<T, LinkError> {
    match result {
        Err(LinkError::Kernel { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Err(LinkError::NameTaken { name: name.to_owned(), namespace: namespace.clone() })
        }
        other => other,
    }
}
