//! What an interface in a pod is given.

use std::io;

use super::FakeLinks;
use crate::link::{LinkError, MacAddr, Namespace, Route};

impl FakeLinks {
    pub(super) fn set_mac(&self, namespace: &Namespace, ifindex: u32, mac: MacAddr) -> Result<(), LinkError> {
        let mut state = self.change(namespace, ifindex, format!("set the MAC to {mac}"))?;
        state.link(namespace, ifindex)?.home.link.mac = Some(mac);
        Ok(())
    }

    pub(super) fn add_route(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        route: &Route,
    ) -> Result<(), LinkError> {
        let action = format!("add the route to {}", route.destination);
        let mut state = self.change(namespace, ifindex, action.clone())?;
        let home = &mut state.link(namespace, ifindex)?.home;
        if !home.link.up {
            return Err(LinkError::Kernel {
                action,
                link: home.link.name.clone(),
                namespace: namespace.clone(),
                source: io::Error::from_raw_os_error(libc::ENETDOWN),
            });
        }
        home.routes.retain(|had| had != route);
        home.routes.push(route.clone());
        Ok(())
    }
}
