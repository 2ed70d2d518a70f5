//! Requests from the control socket.

use tokio::sync::oneshot;

use super::input::{Input, InputSender, ReloadReply};
use super::state::StateReader;
use crate::serve::protocol::{Request, Response};
use crate::serve::server::Handler;

/// Turns requests to reload into inputs of the core, and responds with the state.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) inputs: InputSender,
    pub(super) state: StateReader,
}

impl Handler for Requests {
    async fn handle(&self, request: Request) -> Response {
        match request {
            Request::State => Response::State(self.state.borrow().clone()),
            Request::Reload => {
                let (reply, outcome) = oneshot::channel();
                // Both fail when the daemon ends.
                let sent = self.inputs.send(Input::Reload(ReloadReply::to(reply))).await;
                match (sent, outcome.await) {
                    (Ok(()), Ok(outcome)) => Response::Reload(outcome),
                    _ => Response::Error("the daemon is stopping".to_owned()),
                }
            }
        }
    }
}
