//! Requests from the control socket.

use tokio::sync::oneshot;

use super::input::{Input, InputSender};
use super::reloads::Reloads;
use super::state::StateReader;
use crate::serve::protocol::{Request, Response};
use crate::serve::server::Handler;

/// Turns requests to reload into inputs of the core, and responds with the state.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) inputs: InputSender,
    pub(super) reloads: Reloads,
    pub(super) state: StateReader,
}

impl Handler for Requests {
    async fn handle(&self, request: Request) -> Response {
        match request {
            Request::State => Response::State(self.state.borrow().clone()),
            Request::Reload => {
                let (client, outcome) = oneshot::channel();
                if let Some(reload) = self.reloads.reply_to(client) {
                    let inputs = self.inputs.clone();
                    // A task of its own, because other clients may wait for it when this one is
                    // gone. It fails when the daemon ends.
                    tokio::spawn(async move { drop(inputs.send(Input::Reload(reload)).await) });
                }
                match outcome.await {
                    Ok(outcome) => Response::Reload(outcome),
                    Err(_) => Response::Error("the daemon is stopping".to_owned()),
                }
            }
        }
    }
}
