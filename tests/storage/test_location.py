"""Where a path leads to: the same bucket and folder, however many slashes it has, and for S3 in both operators."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.storage.location import Location, Provider

ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/lake"
OUTPOST = "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/lake"


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
@pytest.mark.parametrize("folder", ["contacts/x", "contacts/x/", "/contacts/x/", "/contacts/x", "//contacts/x//"])
def test_slashes_around_a_folder_are_ignored(scheme, folder):
    location = Location.of(f"{scheme}://lake/{folder}")
    assert ("lake", "contacts/x/", f"{scheme}://lake/") == (location.bucket, location.prefix, location.address)


@pytest.mark.parametrize("end", ["", "/", "//"])
@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
def test_a_bucket_alone_has_an_empty_prefix(scheme, end):
    assert not Location.of(f"{scheme}://lake{end}").prefix


@pytest.mark.parametrize("folder", ["/srv/lake", "/srv/lake/", "//srv/lake//"])
def test_slashes_around_a_local_folder_are_ignored(folder):
    assert "/srv/lake/" == Location.of(f"file://{folder}").prefix


@pytest.mark.parametrize("arn", [ACCESS_POINT, OUTPOST])
@pytest.mark.parametrize("conn_id", [None, "my_lake"])
@pytest.mark.parametrize(("folder", "prefix"), [("", ""), ("/", ""), ("/in", "in/"), ("/in/day=1/", "in/day=1/")])
def test_the_arn_of_an_access_point_is_not_cut(arn, conn_id, folder, prefix):
    location = Location.of(f"s3://{f'{conn_id}@' if conn_id else ''}{arn}{folder}")
    assert (Provider.S3, f"s3://{arn}/", arn, prefix, conn_id) == (
        location.provider,
        location.address,
        location.bucket,
        location.prefix,
        location.conn_id,
    )


@pytest.mark.parametrize("path", ["s3://lake/a?b=c#d", "s3://lake/a b/ü", "s3://lake/100%25"])
def test_characters_of_an_s3_folder_stay_as_they_are(path):
    assert path == f"{Location.of(path).address}{Location.of(path).prefix}".rstrip("/")


@pytest.mark.parametrize("path", ["gs://lake/in", "abfs://lake/in", "file:///lake/in"])
@pytest.mark.parametrize("around", ["{}\n", " {} ", "\r\n{}\t"])
def test_spaces_around_a_path_are_ignored(path, around):
    assert Location.of(path) == Location.of(around.format(path))


@pytest.mark.parametrize("path", ["gs://lake/a\tb", "abfs://lake/a\nb", "file:///a\nb"])
def test_a_line_break_in_a_path_is_refused(path):
    with pytest.raises(ValueError, match="path must be"):
        Location.of(path)


@pytest.mark.parametrize("path", ["file:///", "file:////", "/", " / "])
def test_an_empty_path_from_a_template_is_not_the_root_folder(path):
    with pytest.raises(ValueError, match="needs an absolute path"):
        Location.of(path)


@pytest.mark.parametrize("path", ["gs://[lake/in", "file://[/in", "abfs://lake]/in"])
def test_a_path_that_is_no_url_is_refused(path):
    with pytest.raises(ValueError, match="path must be"):
        Location.of(path)


@pytest.mark.parametrize("folder", [".", "./in", "in/./x", "in/.", "../in"])
def test_a_dot_is_no_folder_on_azure(folder):
    with pytest.raises(ValueError, match="path must be"):
        Location.of(f"abfs://lake/{folder}")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_dot_is_part_of_other_clouds_names(scheme):
    assert "in/./x/" == Location.of(f"{scheme}://lake/in/./x").prefix


@pytest.mark.parametrize("path", ["s3://", "s3:///in", "s3://conn@/in", "s3://lake/../x", "s3://a:b/in"])
def test_an_s3_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(ValueError, match=r"path|location"):
        Location.of(path)


@pytest.mark.parametrize(
    ("path", "hostname"),
    [
        ("abfss://lake@one.dfs.core.windows.net/in", "one.blob.core.windows.net"),
        ("abfss://lake@One.dfs.core.windows.net/in", "one.privatelink.blob.core.windows.net"),
        ("abfss://lake@one.dfs.core.windows.net/in", "127.0.0.1:10000"),
        ("abfss://lake@account.example/in", "one.blob.core.windows.net"),
        ("abfs://my_lake@lake/in", "one.blob.core.windows.net"),
        ("abfs://lake/in", "one.blob.core.windows.net"),
    ],
)
def test_a_path_may_name_the_account_of_the_connection(path, hostname):
    Location.of(path).require_account(hostname)


def test_a_path_with_another_account_is_refused():
    """Otherwise the files would not be where the manifest says."""
    location = Location.of("abfss://lake@one.dfs.core.windows.net/in")
    with pytest.raises(ValueError, match="path names the storage account 'one', but the connection uses 'two'"):
        location.require_account("two.blob.core.windows.net")


@pytest.mark.parametrize(
    "path", ["https://a.example/c/x?sv=1&sig=5ecret", "s3://a:b/x?sig=5ecret", "gs:///x?sig=5ecret"]
)
def test_a_path_that_is_refused_is_shown_without_its_query(path):
    with pytest.raises(ValueError, match=r"path|location") as caught:
        Location.of(path)
    assert "5ecret" not in str(caught.value)
