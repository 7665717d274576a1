<?php
// Sends requests as stripe-php writes them, with PHP's own curl: forms by urlencode with square
// brackets kept, null left out, true and false as words, arrays with positions; JSON under /v2; one
// handle for all. Reads and prints what as_ruby.rb does.

function flat(string $name, mixed $value, bool $plain): array
{
    if (!is_array($value)) {
        return [[$name, is_bool($value) ? ($value ? "true" : "false") : (string) $value]];
    }
    $pairs = [];
    foreach ($value as $key => $inner) {
        if ($inner !== null) {
            $of = $plain && array_is_list($value) ? $name : "{$name}[{$key}]";
            array_push($pairs, ...flat($of, $inner, $plain));
        }
    }
    return $pairs;
}

function form(array $params, bool $plain): string
{
    $written = [];
    foreach ($params as $name => $value) {
        foreach ($value === null ? [] : flat($name, $value, $plain) as $pair) {
            $escaped = array_map(fn ($text) => str_replace(["%5B", "%5D"], ["[", "]"], urlencode($text)), $pair);
            $written[] = implode("=", $escaped);
        }
    }
    return implode("&", $written);
}

$curl = curl_init();
$answers = [];
foreach (json_decode(stream_get_contents(STDIN), true) as $asked) {
    ["method" => $method, "path" => $path, "params" => $params, "plain" => $plain] = $asked;
    $headers = ["Authorization: Bearer sk_test_x", "User-Agent: Stripe/v1 PhpBindings"];
    curl_reset($curl);
    $query = form($params, $plain);
    if ($method === "POST") {
        $json = str_starts_with($path, "/v2/");
        $headers[] = "Content-Type: " . ($json ? "application/json" : "application/x-www-form-urlencoded");
        curl_setopt($curl, CURLOPT_POST, true);
        curl_setopt($curl, CURLOPT_POSTFIELDS, !$json ? $query : ($params === [] ? "" : json_encode($params)));
    } else {
        curl_setopt($curl, CURLOPT_CUSTOMREQUEST, $method);
        $path .= $query === "" ? "" : "?{$query}";
    }
    curl_setopt_array($curl, [
        CURLOPT_URL => $argv[1] . $path, CURLOPT_HTTPHEADER => $headers, CURLOPT_RETURNTRANSFER => true,
    ]);
    $body = curl_exec($curl);
    $answers[] = [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $body];
}
echo json_encode($answers), "\n";
