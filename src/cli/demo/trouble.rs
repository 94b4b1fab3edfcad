//! What `perennial demo --troubled` adds: one credential for each way in which a person, an
//! operator or a provider can be the cure, so that dashboards and alerts have something to show.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{CLIENT, log_in};
use crate::{
    app::App,
    demo::authorization_server::{AuthorizationServer, Behaviour},
};

/// Said at the start.
pub(super) const TROUBLES: &str = "
Beside them, what can go wrong goes wrong within two minutes:
  tablet        somebody ends its login at the provider      needs_login
  doorbell      its client secret is wrong                   misconfigured
  camera-1, -2  their provider goes down                     expired
  guest-room    its login ends after 15 minutes, and its file cannot be written
";

/// Soon enough to be waited for, late enough that the first tokens are there.
const LOGIN_ENDS_AFTER: Duration = Duration::from_secs(20);
const PROVIDER_DOWN_AFTER: Duration = Duration::from_secs(50);
const LOGIN_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The servers beside the demo's own.
pub(super) struct Trouble {
    /// Goes down.
    doomed: AuthorizationServer,
    down: CancellationToken,
    /// Its logins are short.
    strict: AuthorizationServer,
}

impl Trouble {
    pub(super) async fn start(stop: &CancellationToken) -> std::io::Result<Self> {
        let down = stop.child_token();
        let short_logins = Behaviour {
            login_lifetime: Some(LOGIN_LIFETIME),
            ..Behaviour::default()
        };
        Ok(Self {
            doomed: AuthorizationServer::start(Behaviour::default(), down.clone()).await?,
            down,
            strict: AuthorizationServer::start(short_logins, stop.clone()).await?,
        })
    }

    /// What is added to the demo's configuration.
    pub(super) fn configuration(&self) -> String {
        let (doomed, strict) = (self.doomed.token_url(), self.strict.token_url());
        format!(
            r#"
            [providers.doorbells]
            token_url = "{strict}"
            client_id = "{CLIENT}"
            client_secret = "not-the-secret"

            [providers.cameras]
            token_url = "{doomed}"
            client_id = "{CLIENT}"

            [providers.guests]
            token_url = "{strict}"
            client_id = "{CLIENT}"

            [credentials.tablet]
            provider = "players"

            [credentials.doorbell]
            provider = "doorbells"
            grant = "client_credentials"

            [credentials.camera-1]
            provider = "cameras"

            [credentials.camera-2]
            provider = "cameras"

            [credentials.guest-room]
            provider = "guests"
            sinks = [{{ kind = "file", path = "/dev/null/guest-room.token" }}]
            "#
        )
    }

    /// Logs the credentials in, and lets things go wrong by and by.
    pub(super) async fn begin(self, app: &App, server: &AuthorizationServer) -> anyhow::Result<()> {
        let tablet = server.new_grant(CLIENT);
        for name in ["camera-1", "camera-2"] {
            log_in(app, name, self.doomed.new_grant(CLIENT)).await?;
        }
        log_in(app, "guest-room", self.strict.new_grant(CLIENT)).await?;
        log_in(app, "tablet", tablet.clone()).await?;
        let down = self.down;
        tokio::spawn(async move {
            tokio::time::sleep(PROVIDER_DOWN_AFTER).await;
            down.cancel();
        });
        let server = server.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LOGIN_ENDS_AFTER).await;
            server.revoke(&tablet);
        });
        Ok(())
    }
}
