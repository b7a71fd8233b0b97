"""The LitServe part of benchmarks/serving_peers.py: its processes must be able to import the class."""

from typing import Any

import litserve

from benchmarks.serving_peers import Model


class Api(litserve.LitAPI):
    """Batches of user ids in, pages out."""

    words: tuple[str, str, int, int]

    def setup(self, device: str) -> None:
        self.model = Model(*self.words)

    def decode_request(self, request: dict[str, Any], **_: object) -> int:
        return int(request["user_id"])

    def batch(self, inputs: list[int]) -> list[int]:
        return inputs

    def predict(self, x: list[int], **_: object) -> list[dict[str, Any]]:
        return self.model.pages(list(x))

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any], **_: object) -> dict[str, Any]:
        return output


def serve(words: tuple[str, str, int, int], port: int, *, batch: int, wait_s: float) -> None:
    """Serve until killed."""
    api = Api(max_batch_size=batch, batch_timeout=wait_s, api_path="/v1/feed")
    api.words = words
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
