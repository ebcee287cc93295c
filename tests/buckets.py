"""An S3 without S3: moto's, with one bucket."""

import contextlib
from collections.abc import Iterator

import boto3
import moto
import pytest


@contextlib.contextmanager
def bucket(name: str) -> Iterator[str]:
    """The address of an empty bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(variable, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        with moto.mock_aws():
            boto3.client("s3").create_bucket(Bucket=name)
            yield f"s3://{name}"
