//! FleetLock, the protocol of Zincati
//! (<https://coreos.github.io/zincati/development/fleetlock/protocol/>): a server gives a lock to at
//! most N hosts of a group. A host that has it gets it again, and giving back one that it does not have
//! succeeds, so both requests can be repeated.

use hmac_sha256::HMAC;
use hyper::{Request, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Denied;
use crate::http_client::{Body, send};

/// `systemd-id128 machine-id --app-specific=b2d1f0a87c3e4d5f9a6b1c2d3e4f5061` prints the id of a host.
const APPLICATION: u128 = 0xb2d1_f0a8_7c3e_4d5f_9a6b_1c2d_3e4f_5061;

/// A lock on the server: its group and the host that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetLock {
    /// The base of the server's URLs.
    pub url: String,
    /// The hosts that share the lock.
    pub group: String,
    /// The host.
    pub id: String,
}

impl FleetLock {
    /// Takes the lock, or keeps it.
    pub async fn take(&self) -> Result<(), Denied> {
        let (status, text) = self.post("pre-reboot").await?;
        Err(match status.as_u16() {
            200..=299 => return Ok(()),
            _ if is_rejected(status) => Denied::Refused(text),
            _ if is_of_proxy(status) => Denied::Failed(text),
            // airlock, if all slots are taken.
            _ => Denied::Unclear(text),
        })
    }

    /// Releases it. `Some` if the server rejects that, so that it has nothing of this host.
    pub async fn release(&self) -> Result<Option<String>, Denied> {
        let (status, text) = self.post("steady-state").await?;
        match status.is_success() {
            true => Ok(None),
            false if is_rejected(status) => Ok(Some(text)),
            false => Err(Denied::Failed(text)),
        }
    }

    /// The status, and the server's text for messages.
    async fn post(&self, endpoint: &str) -> Result<(StatusCode, String), Denied> {
        let url = format!("{}/v1/{endpoint}", self.url.trim_end_matches('/'));
        let answer = async {
            let client = json!({ "client_params": { "id": self.id, "group": self.group } });
            let request = Request::post(url.parse::<Uri>()?)
                .header("fleet-lock-protocol", "true")
                .header("content-type", "application/json")
                .body(Body::from(client.to_string()))?;
            send(request).await
        };
        let (status, body) = answer.await.map_err(|error| Denied::failed(&url, &error))?;
        Ok((status, format!("{url}: {}", Denied::text(status, &body))))
    }
}

/// Whether the server has done nothing, and would not if asked again in the same way.
fn is_rejected(status: StatusCode) -> bool {
    status.is_client_error() && !is_of_proxy(status)
}

/// Whether the server itself may not have answered, but a proxy or another service: it says nothing of
/// the lock. The protocol has no authentication.
fn is_of_proxy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 300..=399 | 401 | 403 | 407 | 408 | 429 | 502..=504)
}

/// The id of the host with this machine-id(5), which is confidential: derived as
/// `sd_id128_get_machine_app_specific(3)` does, so it stays the same and does not reveal it. `None` if
/// the machine-id is none.
pub fn host_id(machine_id: &str) -> Option<String> {
    let machine = u128::from_str_radix(machine_id.trim(), 16).ok()?;
    let hash = HMAC::mac(APPLICATION.to_be_bytes(), machine.to_be_bytes());
    let first = hash.first_chunk::<16>()?;
    // A UUID of version 4.
    let id = u128::from_be_bytes(*first) & !(0xf000 << 64) & !(0b11 << 62);
    (machine != 0).then(|| format!("{:032x}", id | 0x4000 << 64 | 0b10 << 62))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_that_of_systemd() {
        let of = |id| host_id(id).unwrap_or_default();
        // systemd-id128 of systemd 257.
        let id = "8cb855f1957545148b1383e76b7a28fe";
        assert_eq!(of("3d1219c7c4c5404aaa1f6d2a48adfda4\n"), id);
        for none in ["", "uninitialized\n", "00000000000000000000000000000000"] {
            assert_eq!(host_id(none), None, "{none}");
        }
    }
}
