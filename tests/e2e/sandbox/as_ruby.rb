# Sends requests as stripe-ruby writes them, with the standard library alone: forms by CGI.escape with
# square brackets kept, nil left out, arrays with positions; JSON under /v2; one connection for all.
# Reads [{method, path, params, plain}] from standard input, and prints [[status, answer]]. With plain,
# arrays of a query have no positions, as under /v2 up to stripe-ruby 17.
require "cgi"
require "json"
require "net/http"

def flat(name, value, plain)
  case value
  when Hash then value.flat_map { |key, inner| inner.nil? ? [] : flat("#{name}[#{key}]", inner, plain) }
  when Array
    value.each_with_index.flat_map { |inner, n| flat(plain ? name : "#{name}[#{n}]", inner, plain) }
  else [[name, value]]
  end
end

def form(params, plain)
  pairs = params.compact.flat_map { |name, value| flat(name, value, plain) }
  pairs.map { |pair| pair.map { |text| CGI.escape(text.to_s).gsub("%5B", "[").gsub("%5D", "]") }.join("=") }.join("&")
end

uri = URI(ARGV[0])
Net::HTTP.start(uri.host, uri.port) do |http|
  answers = JSON.parse($stdin.read).map do |asked|
    written = form(asked["params"], asked["plain"])
    headers = { "Authorization" => "Bearer sk_test_x", "User-Agent" => "Stripe/v1 RubyBindings" }
    response =
      case asked["method"]
      when "POST"
        json = asked["path"].start_with?("/v2/")
        headers["Content-Type"] = json ? "application/json" : "application/x-www-form-urlencoded"
        http.post(asked["path"], json ? JSON.generate(asked["params"]) : written, headers)
      when "DELETE" then http.delete(asked["path"], headers)
      else http.get(written.empty? ? asked["path"] : "#{asked["path"]}?#{written}", headers)
      end
    [response.code.to_i, response.body]
  end
  puts JSON.generate(answers)
end
