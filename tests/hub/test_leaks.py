from __future__ import annotations

import pytest

from sd_ext.hub.leaks import Secrets, find_leaks, shown

ALICE = Secrets(home="/home/alice", user="alice", token="abcdef123456", meant=("alice/brush", "a photo of alice"))
TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"token={TOKEN}", "an access token"),
        ("the token is abcdef123456.", "an access token"),
        ("https://alice:secret@example.org", "an access token"),
        ("ghp_" + "a1" * 18, "an access token"),
        ("key AKIAIOSFODNN7EXAMPLE", "an access token"),
        ("glpat-" + "a1" * 10, "an access token"),
        ("npm_" + "a1" * 18, "an access token"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.SflKxwRJSMeKKF2", "an access token"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "an access token"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "an access token"),
        ("by bob@example.org.", "a mail address"),
        ("data: /home/alice/pictures", "the home directory"),
        ("/home/alice", "the home directory"),
        ("~/pictures", "the home directory"),
        ("$HOME/pictures", "the home directory"),
        ("/srv/pictures", "an absolute path"),
        ("| data | /scratch/run1/data |", "an absolute path"),
        ('{"dir": "/mnt"}', "an absolute path"),
        ("dir:/mnt/disk/set", "an absolute path"),
        ("file:///etc", "an absolute path"),
        (r"C:\Users\bob", "an absolute path"),
        ("D:/data/set", "an absolute path"),
        (r"C:\\Users\\bob", "an absolute path"),
        (r"\\server\share", "an absolute path"),
        ("pictures/alice/set", "the user's account name"),
        ("alice", "the user's account name"),
        ("alice@workstation", "the user's account name"),
    ],
)
def test_found(text, kind):
    found = find_leaks(text, ALICE)
    assert kind in [each.partition(" (")[0] for each in found]
    assert not any(len(secret) > 3 and secret in str(found) for secret in (TOKEN[3:], "bob@example", "IOSFODNN7"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://huggingface.co/alice/brush/blob/main/README.md",
        "a cat and/or a dog, 3/4 view, w/ hat, 2024/01/02",
        "a photo of alice",
        "alice in wonderland, a prompt",  # a word, not an account
        "samples/0000.png, ./samples/0000.png, ../x/y",
        "<Gallery /> </b> <br/>",
        r"down_blocks\.0\.attn.*\.to_q",
        "lr 1e-4: 3, ratio 16:9",
        "hf_hub_download, hf_api",
        "[README.md](README.md)",
    ],
)
def test_innocent(text):
    assert find_leaks(text, ALICE) == []


def test_no_home_and_no_name_are_not_found_everywhere():
    assert find_leaks("anything at all", Secrets()) == []


def test_this_machine(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "xyzzy-token-of-mine")
    monkeypatch.setenv("LOGNAME", "carol")
    secrets = Secrets.of_this_machine(["carol/lora", ""])
    assert secrets.token == "xyzzy-token-of-mine"
    assert (secrets.user, secrets.meant) == ("carol", ("carol/lora",))
    assert "xyzzy" not in repr(secrets)
    monkeypatch.setenv("LOGNAME", "root")  # an account that names nobody
    assert Secrets.of_this_machine().user == ""


def test_mail_is_let_through_where_it_is_meant_and_text_that_steers_a_screen_is_escaped():
    assert find_leaks("by bob@example.org", Secrets(mail=True)) == []
    assert shown("a\u202eb\x1b[2Jc\u2066") == "a\\u202eb\\x1b[2Jc\\u2066"
    assert shown("👩\u200d🔬 naïve\tعربي\n") == "👩\u200d🔬 naïve\tعربي\n"
