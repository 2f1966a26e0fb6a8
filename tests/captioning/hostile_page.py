"""Data for the page of `captioning.browse` in which every text contains markup or script."""

from __future__ import annotations

from typing import Any

TEXTS = (
    "</script><script>window.hit = 1</script>",
    "<script>alert(1)</script>",
    "<!-- <script>",
    "--> ]]> <![CDATA[ </style></title></textarea>",
    '<img src=x onerror="window.hit = 1">',
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "${window.hit = 1} `${alert(1)}` {{hit}} __DATA__ __HASH__",
    "& &amp; &lt;b&gt; &#x3c;script&#x3e; \\u003cscript\\u003e \\",
    "line\u2028separator\u2029paragraph",
    "null\0character\x1b[2J\x07\x9b",
    "lone \ud83d surrogate",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eoverride \u2067isolate",
    "javascript:alert(1)",
    "__proto__",
    "x" * 3000,
    "\u2063".join("W" * 300),
)


def hostile_data() -> dict[str, Any]:
    """Return the input of `captioning.browse.render`: an image and a class for each text."""
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    images = [
        {
            "id": text,
            "thumbnail": pixel if number % 2 else None,
            "collage": pixel if number % 3 else None,
            "members": [text, *TEXTS[:3]],
            "texts": [
                {"kind": text, "text": text, "error": ""},
                {"kind": "group", "text": "", "error": text},
            ],
            "label": text,
            "score": 0.5,
            "margin": 0.25,
            "truth": text,
        }
        for number, text in enumerate(TEXTS)
    ]
    return {"name": TEXTS[0], "classes": list(TEXTS), "images": images}
